package inventory

import (
	"fmt"
	"strings"

	"gopkg.in/yaml.v3"
)

// document is one inventory while it is being read: where its fields stand
// and what is wrong with them.
type document struct {
	settings
	file string
	dir  string // of the file, absolute

	fields   map[string]*yaml.Node // the value of each field given, by path
	bad      map[string]bool       // fields whose value could not be read
	visited  int                   // nodes decoded so far, aliases followed
	problems Problems
	warnings Problems
}

// given says that the document holds the field with a value that was read.
func (d *document) given(field string) bool { return d.fields[field] != nil && !d.bad[field] }

// problem records what is wrong with a field, at the field's position or, for
// a field that is missing, at that of the closest one around it.
func (d *document) problem(field, text, hint string) {
	d.problems = append(d.problems, d.note(field, text, hint))
}

func (d *document) warn(field, text, hint string) {
	d.warnings = append(d.warnings, d.note(field, text, hint))
}

func (d *document) note(field, text, hint string) Problem {
	line, column := d.position(field)
	return Problem{File: d.file, Line: line, Column: column, Field: field, Text: text, Hint: hint}
}

// problemAt records a problem at a node, which need not be a field's value.
func (d *document) problemAt(n *yaml.Node, field, text, hint string) {
	d.problems = append(d.problems, Problem{
		File: d.file, Line: n.Line, Column: n.Column, Field: field, Text: text, Hint: hint,
	})
}

func (d *document) position(field string) (line, column int) {
	for {
		if n := d.fields[field]; n != nil {
			return n.Line, n.Column
		}
		if field == "" {
			return 1, 1
		}
		field = field[:max(0, strings.LastIndexAny(field, ".["))]
	}
}

func (d *document) failure() error {
	d.problems.sort()
	return d.problems
}

// join returns the path of a key inside a field.
func join(field, key string) string {
	if field == "" {
		return key
	}
	return field + "." + key
}

func element(field string, i int) string { return fmt.Sprintf("%s[%d]", field, i) }
