package inventory

import (
	"fmt"
	"slices"
	"strings"
)

// Hook is a command that is run on the workstation at some moment of an
// operation.
type Hook struct {
	// On is the moment: before- or after-, and connect (to each host), host
	// (before its first change, and after the operation), upgrade (of the
	// programs of a host), apply, replace, restore, reset, backup or certs.
	On string `yaml:"on,omitempty" json:"on,omitempty"`
	// Run is a command for sh, run in the directory of the inventory. What is
	// going on is in its environment as MUSTER_*.
	Run Script `yaml:"run,omitempty" json:"run,omitempty"`
}

// Script is a command for a shell. What looks like a variable in it is left to
// the shell.
type Script string

// hookSubjects are what a hook can be before or after.
func hookSubjects() []string {
	return []string{"connect", "host", "upgrade", "apply", "replace", "restore", "reset", "backup", "certs"}
}

// Moments are all values of Hook.On.
func Moments() []string {
	var all []string
	for _, s := range hookSubjects() {
		all = append(all, "before-"+s, "after-"+s)
	}
	return all
}

func (d *document) checkHooks(hooks []Hook) {
	for i, h := range hooks {
		field := element("hooks", i)
		if d.bad[field] {
			continue
		}
		on, run := join(field, "on"), join(field, "run")
		switch {
		case d.bad[on]:
		case h.On == "":
			d.problem(on, "is missing", "write when the command is run, such as on: before-apply")
		case !slices.Contains(Moments(), h.On):
			d.problem(on, fmt.Sprintf("%q is not a moment of an operation", printable(h.On)), "write before- or after- and one of "+strings.Join(hookSubjects(), ", "))
		}
		if h.Run == "" && !d.bad[run] {
			d.problem(run, "is missing", "write the command")
		}
	}
}
