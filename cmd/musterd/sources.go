package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

const variablePrefix = "ETCD_"

// fileNamed returns the configuration file, which a flag or the environment
// may name.
func (o *options) fileNamed(environment []string) string {
	if o.configFile != "" {
		return o.configFile
	}
	for _, pair := range environment {
		if path, named := strings.CutPrefix(pair, variablePrefix+"CONFIG_FILE="); named {
			return path
		}
	}
	return ""
}

// fromEnvironment sets flags from ETCD_NAME and the like. As in etcd a
// variable and a flag for the same setting are a conflict.
func (o *options) fromEnvironment(set *flag.FlagSet, environment []string) error {
	byFlag := given(set)
	for _, pair := range slices.Sorted(slices.Values(environment)) {
		key, value, _ := strings.Cut(pair, "=")
		name, ours := strings.CutPrefix(key, variablePrefix)
		if !ours {
			continue
		}
		name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
		switch {
		case name == "version" || set.Lookup(name) == nil:
			o.note("environment variable %s names no flag of musterd; it is ignored", key)
		case slices.Contains(byFlag, name):
			return fmt.Errorf("environment variable %s and the flag --%s are both given; unset the variable or leave the flag out", key, name)
		case value != "":
			if err := set.Set(name, value); err != nil {
				return fmt.Errorf("environment variable %s=%q: %w", key, value, err)
			}
		}
	}
	return nil
}

// sections are the mappings within etcd's configuration file, with the flag
// that each of their keys stands for. The rest of a section's keys are flags
// behind its prefix.
var sections = map[string]struct {
	prefix string
	keys   map[string]string
}{
	"client-transport-security": {"", map[string]string{
		"allowed-hostname": "client-cert-allowed-hostname",
		"crl-file":         "client-crl-file",
	}},
	"peer-transport-security": {"peer-", map[string]string{
		"allowed-cn":       "peer-cert-allowed-cn",
		"allowed-hostname": "peer-cert-allowed-hostname",
	}},
	"socket-options":   {"socket-", map[string]string{}},
	"discovery-config": {"discovery-", map[string]string{"username": "discovery-user"}},
}

// fromFile reads settings in the format of etcd's configuration file. Flags
// that were given beside it are not heard.
func fromFile(path string, given []string) (*options, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read --config-file: %w", err)
	}
	var document yaml.Node
	if err := yaml.Unmarshal(data, &document); err != nil {
		return nil, fmt.Errorf("read --config-file %s: %w", path, err)
	}
	o := newOptions()
	o.note("the settings come from %s; other flags and environment variables are ignored", path)
	for _, name := range given {
		if name != "config-file" {
			o.note("--%s is ignored: %s has all the settings", name, path)
		}
	}
	if len(document.Content) == 0 {
		return o, nil
	}
	file := settingsFile{path, o.flags()}
	return o, file.read(document.Content[0], file.top)
}

type settingsFile struct {
	path string
	set  *flag.FlagSet
}

// read gives every setting of a mapping to take.
func (f settingsFile) read(mapping *yaml.Node, take func(key, value *yaml.Node) error) error {
	if mapping.Kind != yaml.MappingNode {
		return fmt.Errorf("%s:%d: a mapping of settings is needed", f.path, mapping.Line)
	}
	var errs []error
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		errs = append(errs, take(mapping.Content[i], mapping.Content[i+1]))
	}
	return errors.Join(errs...)
}

func (f settingsFile) top(key, value *yaml.Node) error {
	section, isSection := sections[key.Value]
	if !isSection {
		return f.assign(key.Value, key, value)
	}
	var within func(key, value *yaml.Node) error
	within = func(key, value *yaml.Node) error {
		if value.Kind == yaml.MappingNode && f.set.Lookup(section.prefix+key.Value) == nil {
			return f.read(value, within) // a part of the section, such as client
		}
		name, other := section.keys[key.Value]
		if !other {
			name = section.prefix + key.Value
		}
		return f.assign(name, key, value)
	}
	return f.read(value, within)
}

func (f settingsFile) assign(name string, key, value *yaml.Node) error {
	setting := f.set.Lookup(name)
	if setting == nil {
		return fmt.Errorf("%s:%d: %w", f.path, key.Line, unknownName("setting ", key.Value, f.set))
	}
	given := value.Value
	switch value.Kind {
	case yaml.ScalarNode:
		if value.Tag == "!!null" { // as in etcd, a key without a value leaves the default
			return nil
		}
		if _, isSpan := setting.Value.(watched).Value.(span); isSpan && value.Tag == "!!int" {
			given += "ns" // durations in etcd's file are nanoseconds
		}
	case yaml.SequenceNode:
		items := make([]string, len(value.Content))
		for i, item := range value.Content {
			items[i] = item.Value
		}
		given = strings.Join(items, ",")
	default:
		return fmt.Errorf("%s:%d: %s: a single value or a list is needed", f.path, value.Line, key.Value)
	}
	if err := f.set.Set(name, given); err != nil {
		return fmt.Errorf("%s:%d: %s: %w", f.path, value.Line, key.Value, err)
	}
	return nil
}
