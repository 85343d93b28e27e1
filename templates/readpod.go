package templates

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"gopkg.in/yaml.v3"
)

// ReadPod takes the manifest of a static pod apart: the words of its first
// container's command line, and every other field as a Setting named by its
// path, sorted.
func ReadPod(text string) (command []string, settings []Setting, err error) {
	var pod struct {
		Kind string
		Spec struct {
			Containers []struct{ Command, Args []string }
		}
	}
	if err := yaml.Unmarshal([]byte(text), &pod); err != nil {
		return nil, nil, fmt.Errorf("read the manifest: %w", err)
	}
	if pod.Kind != "Pod" || len(pod.Spec.Containers) == 0 {
		return nil, nil, errors.New("read the manifest: it is not of a pod with a container")
	}
	command = slices.Concat(pod.Spec.Containers[0].Command, pod.Spec.Containers[0].Args)
	var all any
	if err := yaml.Unmarshal([]byte(text), &all); err != nil {
		return nil, nil, fmt.Errorf("read the manifest: %w", err)
	}
	return command, slices.SortedFunc(slices.Values(flatten("", all)), compareSettings), nil
}

func compareSettings(a, b Setting) int {
	return slices.Compare([]string{a.Name, a.Value}, []string{b.Name, b.Value})
}

// flatten returns the scalars below a value, but for the command line.
func flatten(path string, value any) []Setting {
	var all []Setting
	switch v := value.(type) {
	case map[string]any:
		for name, inner := range v {
			if path == "spec.containers.0" && (name == "command" || name == "args") {
				continue
			}
			if path != "" {
				name = path + "." + name
			}
			all = append(all, flatten(name, inner)...)
		}
	case []any:
		for i, inner := range v {
			all = append(all, flatten(path+"."+strconv.Itoa(i), inner)...)
		}
	case nil:
	default:
		all = append(all, Setting{Name: path, Value: fmt.Sprint(v)})
	}
	return all
}
