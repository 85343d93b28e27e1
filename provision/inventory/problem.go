package inventory

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing that is wrong with an inventory.
type Problem struct {
	File   string `json:"file"`            // as given to Load
	Line   int    `json:"line"`            // from 1
	Column int    `json:"column"`          // from 1, in characters
	Field  string `json:"field,omitempty"` // such as "controllers[1].address"; empty for the whole document
	Text   string `json:"text"`            // what is wrong
	Hint   string `json:"hint"`            // what to write instead
}

// Warning is something worth telling that stops no operation.
type Warning = Problem

// String returns "file:line:column: field: what is wrong; what to write".
func (p Problem) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d:%d: ", p.File, p.Line, p.Column)
	if p.Field != "" {
		fmt.Fprintf(&b, "%s: ", p.Field)
	}
	fmt.Fprintf(&b, "%s; %s", p.Text, p.Hint)
	return b.String()
}

// Problems is every problem of one inventory, in the order of the document.
// It is never empty when it is returned as an error.
type Problems []Problem

// Error returns one problem a line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Count returns "1 problem" or "N problems".
func (ps Problems) Count() string {
	if len(ps) == 1 {
		return "1 problem"
	}
	return fmt.Sprintf("%d problems", len(ps))
}

func (ps Problems) sort() {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}
