package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/agext/levenshtein"

	"muster/kvserver"
)

// options is the command line, the environment and the configuration file,
// read into one place.
type options struct {
	config     kvserver.Config
	version    bool
	configFile string
	log        logOptions
	// notes are said once in the log: what was given and has no effect.
	notes []string
}

func newOptions() *options {
	return &options{config: kvserver.Default(), log: defaultLog()}
}

// parse reads flags first, then ETCD_* variables for what no flag set; a
// configuration file, as in etcd, replaces both.
func parse(args, environment []string) (*options, error) {
	o := newOptions()
	flags := o.flags()
	if err := flags.Parse(args); err != nil {
		return nil, explain(err, flags)
	}
	if extra := flags.Args(); len(extra) > 0 {
		return nil, fmt.Errorf("%q is not a valid flag; musterd takes only flags (see --help)", extra[0])
	}
	if o.version {
		return o, nil
	}
	if path := o.fileNamed(environment); path != "" {
		return fromFile(path, given(flags))
	}
	if err := o.fromEnvironment(flags, environment); err != nil {
		return nil, err
	}
	if is := given(flags); slices.Contains(is, "listen-client-urls") && !slices.Contains(is, "advertise-client-urls") {
		return nil, errors.New("--advertise-client-urls is required when --listen-client-urls is set explicitly")
	}
	return o, nil
}

// flags makes the table's rows into flags that write to o.
func (o *options) flags() *flag.FlagSet {
	set := flag.NewFlagSet("musterd", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.Usage = func() {}
	for _, g := range o.table() {
		for _, r := range g.rows {
			off := r.value.String()
			for _, name := range append([]string{r.name}, r.old...) {
				set.Var(watched{r.value, func(string) error { return o.accept(r, name, off) }}, name, r.usage)
			}
		}
	}
	return set
}

// accept is called when a flag has been given; off is its default.
func (o *options) accept(r row, name, off string) error {
	switch {
	case r.only != "" && r.value.String() != off:
		return fmt.Errorf("not supported by this version: %s; leave --%s out", r.only, name)
	case r.noEffect != "":
		o.note("--%s is accepted but has no effect: %s", name, r.noEffect)
	case name != r.name:
		o.note("--%s is an old name of --%s; use the new one", name, r.name)
	}
	return nil
}

func (o *options) note(format string, args ...any) {
	if note := fmt.Sprintf(format, args...); !slices.Contains(o.notes, note) {
		o.notes = append(o.notes, note)
	}
}

// given lists the flags that were set.
func given(set *flag.FlagSet) []string {
	var names []string
	set.Visit(func(f *flag.Flag) { names = append(names, f.Name) })
	return names
}

// explain adds the nearest known name to the complaint about an unknown flag.
func explain(err error, set *flag.FlagSet) error {
	const unknown = "flag provided but not defined: -"
	name, found := strings.CutPrefix(err.Error(), unknown)
	if !found {
		return err
	}
	return unknownName("flag --", name, set)
}

func unknownName(what, name string, set *flag.FlagSet) error {
	nearest, distance := "", len(name)/2+1
	set.VisitAll(func(f *flag.Flag) {
		if d := levenshtein.Distance(name, f.Name, nil); d < distance {
			nearest, distance = f.Name, d
		}
	})
	if nearest == "" {
		return fmt.Errorf("unknown %s%s; see --help", what, name)
	}
	return fmt.Errorf("unknown %s%s; did you mean %s%s?", what, name, what[strings.LastIndex(what, " ")+1:], nearest)
}
