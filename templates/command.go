package templates

import (
	"fmt"
	"strings"

	"github.com/coreos/go-systemd/v22/unit"
	"mvdan.cc/sh/v3/shell"
)

// Setting is one line of a unit: "Service/User=muster".
type Setting struct {
	Name  string // "Section/Option"
	Value string
}

const execStart = "Service/ExecStart"

// ReadUnit takes a unit apart: the words of its command line, and the other
// settings in their order. Comments and the way lines are broken are lost.
func ReadUnit(text string) (command []string, settings []Setting, err error) {
	options, err := unit.DeserializeOptions(strings.NewReader(text))
	if err != nil {
		return nil, nil, fmt.Errorf("read the unit: %w", err)
	}
	for _, o := range options {
		s := Setting{Name: o.Section + "/" + o.Name, Value: o.Value}
		if s.Name != execStart {
			settings = append(settings, s)
			continue
		}
		if command, err = commandWords(s.Value); err != nil {
			return nil, nil, fmt.Errorf("read the command line of the unit: %w", err)
		}
	}
	return command, settings, nil
}

// commandWords undoes quoteArgument. Within quotes systemd reads what a shell
// does, but for what it expands.
func commandWords(line string) ([]string, error) {
	line = strings.NewReplacer("\\\n", " ", "%%", "%", "$$", `\$`).Replace(line)
	return shell.Fields(line, func(string) string { return "" })
}
