package desired

import "path"

// Paths are where a host has what belongs to one cluster, apart from what the
// server itself reads. A machine that carries two clusters has them twice.
type Paths struct {
	// Record, Restoring and Adoption are what the host remembers; see package
	// observed.
	Record, Restoring, Adoption string
	// Environment is read by the unit, if it is there.
	Environment string
	// RestartMark exists between the first change of something that the running
	// member uses and the member's restart. A run that is killed in between leaves
	// it for the next one; a reboot, which restarts the member, removes it. Lock
	// is held by the run that is at work.
	RestartMark, Lock string
	// BackupService and BackupTimer are names of units.
	BackupService, BackupTimer string
}

// pathsOf are the Paths of a cluster's instance; most have an empty one.
func pathsOf(instance string) Paths {
	config := suffixed(configDir, instance)
	return Paths{
		Record:        path.Join(config, "cluster.json"),
		Restoring:     path.Join(config, "restore.json"),
		Adoption:      path.Join(config, "adopted.json"),
		Environment:   path.Join(config, "restore.env"),
		RestartMark:   suffixed("/run/muster", instance) + ".restart",
		Lock:          suffixed("/run/muster", instance) + ".lock",
		BackupService: suffixed("musterd", instance) + "-backup.service",
		BackupTimer:   suffixed("musterd", instance) + "-backup.timer",
	}
}

// BackupUnits are where the units of a Backup are. They are to be gone where none
// is wanted.
func (p Paths) BackupUnits() []string {
	return []string{path.Join(unitDir, p.BackupService), path.Join(unitDir, p.BackupTimer)}
}

func suffixed(name, instance string) string {
	if instance == "" {
		return name
	}
	return name + "-" + instance
}
