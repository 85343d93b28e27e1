package plan

import (
	"crypto/sha256"
	"encoding/hex"

	"muster/provision/desired"
	"muster/provision/observed"
)

// BackupStale says that the units of a host's backups differ from what they
// should be, are there and should not be, or do not run.
func BackupStale(paths desired.Paths, want *desired.Backup, have observed.Facts) bool {
	if want == nil {
		return len(BackupLeftovers(paths, have)) > 0
	}
	for _, f := range want.Files {
		sum := sha256.Sum256(f.Content)
		if have.Files[f.Path].SHA256 != hex.EncodeToString(sum[:]) {
			return true
		}
	}
	return !have.Timer.Active || !have.Timer.Enabled
}

// BackupLeftovers are the units of backups that a host has, by path.
func BackupLeftovers(want desired.Paths, have observed.Facts) []string {
	var paths []string
	for _, path := range want.BackupUnits() {
		if _, exists := have.Files[path]; exists {
			paths = append(paths, path)
		}
	}
	return paths
}

func (c *comparison) backup() {
	want := c.Want.Backup
	if want == nil {
		for _, path := range BackupLeftovers(c.Want.Paths, c.Have) {
			c.add(Remove, Unit, path)
		}
		return
	}
	if have, exists := c.Have.Files[want.Directory.Path]; !exists {
		c.add(Create, Directory, want.Directory.Path)
	} else if details := attributes(have, want.Directory.Mode, want.Directory.Owner, want.Directory.Group); len(details) > 0 {
		c.add(Update, Directory, want.Directory.Path, details...)
	}
	for _, f := range want.Files {
		c.file(f)
	}
	if BackupStale(c.Want.Paths, want, c.Have) {
		c.add(Start, Service, c.Want.Paths.BackupTimer)
	}
}
