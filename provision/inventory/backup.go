package inventory

import (
	"fmt"
	"strings"
)

// Defaults of a Backup.
const (
	DefaultBackupSchedule  = "daily"
	DefaultBackupDirectory = "/var/backups/muster"
	DefaultBackupKeep      = 14
)

// Backup says when every host saves a snapshot of the cluster on its own disk.
type Backup struct {
	// Schedule is a calendar event of systemd's, such as daily, hourly or
	// "*-*-* 03:00". Defaults to daily.
	Schedule string `yaml:"schedule,omitempty" json:"schedule,omitempty"`
	// Directory is an absolute path on the hosts. Defaults to
	// /var/backups/muster.
	Directory string `yaml:"directory,omitempty" json:"directory,omitempty"`
	// Keep is how many snapshots stay in the directory. Defaults to 14.
	Keep int `yaml:"keep,omitempty" json:"keep,omitempty"`
}

func (b *Backup) fillDefaults() {
	if b == nil {
		return
	}
	fill(&b.Schedule, DefaultBackupSchedule)
	fill(&b.Directory, DefaultBackupDirectory)
	fill(&b.Keep, DefaultBackupKeep)
}

const maxBackups = 10_000

func (d *document) checkBackup(c *Cluster) {
	b := c.Backup
	if b == nil || d.bad["backup"] {
		return
	}
	if f := "backup.schedule"; d.given(f) && strings.Trim(b.Schedule, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 *-:,/.~") != "" {
		d.problem(f, fmt.Sprintf("%q is not a calendar event", printable(b.Schedule)), "write one that systemd-analyze calendar understands, such as daily or *-*-* 03:00")
	}
	if f := "backup.keep"; d.given(f) && (b.Keep < 1 || b.Keep > maxBackups) {
		d.problem(f, fmt.Sprintf("%d snapshots cannot be kept", b.Keep), fmt.Sprintf("write a number from 1 to %d", maxBackups))
	}
	f := "backup.directory"
	if !d.given(f) {
		return
	}
	d.checkDataDir(f, b.Directory)
	for _, h := range c.Hosts {
		inside := func(a, b string) bool { return a == b || strings.HasPrefix(a, b+"/") }
		if inside(b.Directory, h.Server.DataDir) || inside(h.Server.DataDir, b.Directory) {
			d.problem(f, fmt.Sprintf("%q and the data directory of %s are one in the other", printable(b.Directory), h.Name), "write a directory of its own, such as "+DefaultBackupDirectory)
			return
		}
	}
}
