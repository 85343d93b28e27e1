package desired

import (
	"path"
	"strconv"

	"muster/provision/inventory"
	"muster/templates"
)

// Backup is what a host needs to save snapshots by itself.
type Backup struct {
	Directory Directory
	Files     []File // the service, then the timer
}

func backupFor(cluster *inventory.Cluster, h inventory.Host, at places) (*Backup, error) {
	b := cluster.Backup
	if b == nil {
		return nil, nil
	}
	in := func(file string) string { return path.Join(at.pki, file) }
	units := templates.Backup{
		Cluster: cluster.Name, Program: path.Join(binDir, at.client), Unit: at.unit, Service: at.paths.BackupService, Directory: b.Directory, Schedule: b.Schedule,
		Args: []templates.Argument{
			{Flag: "cluster", Value: cluster.Name},
			{Flag: "member", Value: h.Name},
			{Flag: "endpoint", Value: h.ClientURL()},
			{Flag: "cacert", Value: in("ca.crt")},
			{Flag: "cert", Value: in(healthcheck + ".crt")},
			{Flag: "key", Value: in(healthcheck + ".key")},
			{Flag: "keep", Value: strconv.Itoa(b.Keep)},
		},
	}
	service, err := units.RenderService()
	if err != nil {
		return nil, err
	}
	timer, err := units.RenderTimer()
	if err != nil {
		return nil, err
	}
	want := &Backup{Directory: Directory{Path: b.Directory, Mode: 0o700, Owner: root, Group: root}}
	for i, content := range [][]byte{service, timer} {
		want.Files = append(want.Files, File{Path: at.paths.BackupUnits()[i], Mode: publicMode, Owner: root, Group: root, Content: content})
	}
	return want, nil
}
