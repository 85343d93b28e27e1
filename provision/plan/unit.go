package plan

import (
	"slices"
	"strings"

	"muster/provision/desired"
	"muster/templates"
)

// option is one flag of a command line. A switch has no value.
type option struct{ name, value string }

// options reads the words of a command line behind the program.
func options(words []string) []option {
	var all []option
	for i := 0; i < len(words); i++ {
		name, ok := strings.CutPrefix(words[i], "--")
		if !ok {
			continue
		}
		name, value, joined := strings.Cut(name, "=")
		if !joined && i+1 < len(words) && !strings.HasPrefix(words[i+1], "--") {
			i++
			value = words[i]
		}
		all = append(all, option{name, value})
	}
	return all
}

// unitDetails names the flags and settings in which two texts differ, as read
// takes them apart.
func unitDetails(have, want string, read func(string) ([]string, []templates.Setting, error)) []string {
	haveCommand, haveSettings, haveErr := read(have)
	wantCommand, wantSettings, wantErr := read(want)
	if haveErr != nil || wantErr != nil {
		return []string{"it cannot be read"}
	}
	var details []string
	if program(haveCommand) != program(wantCommand) {
		details = append(details, arrow("program", program(haveCommand), program(wantCommand)))
	}
	details = append(details, flagDetails(options(haveCommand), options(wantCommand))...)
	details = append(details, settingDetails(haveSettings, wantSettings)...)
	if len(details) == 0 {
		details = []string{"only its comments or its layout differ"}
	}
	return details
}

func program(command []string) string {
	if len(command) == 0 {
		return ""
	}
	return command[0]
}

func arrow(name, from, to string) string {
	if from == "" {
		from = `""`
	}
	if to == "" {
		to = `""`
	}
	return name + ": " + from + " -> " + to
}

func flagDetails(have, want []option) []string {
	var details []string
	for _, w := range want {
		i := slices.IndexFunc(have, func(h option) bool { return h.name == w.name })
		switch {
		case i < 0:
			details = append(details, "--"+w.name+": not set -> "+w.shown())
		case have[i] != w:
			details = append(details, arrow("--"+w.name, have[i].value, w.value))
		}
	}
	for _, h := range have {
		if !slices.ContainsFunc(want, func(w option) bool { return w.name == h.name }) {
			details = append(details, "--"+h.name+": "+h.shown()+" -> not set")
		}
	}
	return details
}

func (f option) shown() string {
	if f.value == "" {
		return "set"
	}
	return f.value
}

// settingDetails compares settings, of which one name may occur several times.
func settingDetails(have, want []templates.Setting) []string {
	values := func(settings []templates.Setting, name string) string {
		var all []string
		for _, s := range settings {
			if s.Name == name {
				all = append(all, s.Value)
			}
		}
		return strings.Join(all, ", ")
	}
	var details, told []string
	for _, s := range slices.Concat(want, have) {
		if slices.Contains(told, s.Name) {
			continue
		}
		told = append(told, s.Name)
		if from, to := values(have, s.Name), values(want, s.Name); from != to {
			details = append(details, arrow(s.Name, from, to))
		}
	}
	return details
}

// BootstrapOf reads from a unit, or the manifest of a static pod, what its member
// was told about the cluster; ok is false when it does not say.
func BootstrapOf(unit string) (b desired.Bootstrap, ok bool) {
	command, _, err := templates.ReadUnit(unit)
	if pod, _, podErr := templates.ReadPod(unit); podErr == nil {
		command, err = pod, nil
		b.State = "new" // as etcd takes it when it is not told
	}
	if err != nil {
		return b, false
	}
	for _, f := range options(command) {
		switch f.name {
		case "initial-cluster":
			b.InitialCluster = f.value
		case "initial-cluster-state":
			b.State = f.value
		}
	}
	return b, b.InitialCluster != "" && (b.State == "new" || b.State == "existing")
}

// Names lists the members of a Bootstrap.
func Names(b desired.Bootstrap) []string {
	var names []string
	for _, member := range strings.Split(b.InitialCluster, ",") {
		if name, _, ok := strings.Cut(member, "="); ok && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}
