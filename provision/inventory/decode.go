package inventory

import (
	"encoding"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// Limits of a document, which aliases could otherwise exceed without end.
const (
	maxNodes = 200_000
	maxDepth = 20
)

// decode fills the cluster from the root node and records every problem and
// the position of every field on its way.
func (d *document) decode(root *yaml.Node, c *Cluster) {
	d.fields = map[string]*yaml.Node{}
	d.bad = map[string]bool{}
	d.value(root, "", reflect.ValueOf(c).Elem(), 0)
}

// value decodes one node into v, which decides what is expected.
func (d *document) value(n *yaml.Node, field string, v reflect.Value, depth int) {
	if d.visited++; d.visited > maxNodes || depth > maxDepth {
		if d.visited == maxNodes+1 || depth > maxDepth {
			d.unreadable(n, field, "is nested too deeply or repeats itself through aliases", "write the values out without anchors")
		}
		return
	}
	d.fields[field] = n
	if n.Kind == yaml.AliasNode {
		// The problem of an alias is shown where it is used: that is the line
		// the field's path leads to.
		aliased := *n.Alias
		aliased.Line, aliased.Column = n.Line, n.Column
		n = &aliased
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		d.unreadable(n, field, "has no value", "write one, or remove the line")
		return
	}
	if text, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		d.text(n, field, text)
		if v.IsZero() && !d.bad[field] {
			d.unreadable(n, field, "is zero", "write a longer one, or remove the line for the default")
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.object(n, field, v, depth)
	case reflect.Slice:
		d.list(n, field, v, depth)
	case reflect.Map:
		d.stringMap(n, field, v, depth)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, field, v.Elem(), depth+1)
	case reflect.Int:
		d.integer(n, field, v)
	case reflect.Bool:
		d.boolean(n, field, v)
	default:
		read := d.scalar
		if v.Type() == reflect.TypeFor[Script]() {
			read = d.literal
		}
		if s, ok := read(n, field); ok {
			v.SetString(s)
		}
	}
}

func (d *document) unreadable(n *yaml.Node, field, text, hint string) {
	d.problemAt(n, field, text, hint)
	d.bad[field] = true
}

func (d *document) object(n *yaml.Node, field string, v reflect.Value, depth int) {
	if address := addressOf(v.Addr().Interface()); address != nil && n.Kind == yaml.ScalarNode {
		if s, ok := d.scalar(n, field); ok {
			*address = s
			d.fields[join(field, "address")] = n
		}
		return
	}
	if n.Kind != yaml.MappingNode {
		d.unreadable(n, field, "is "+kindName(n)+" where a mapping belongs", `write "key: value" lines`)
		return
	}
	known := keysOf(v.Type())
	first := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		path := join(field, printable(key.Value))
		index, ok := known[key.Value]
		switch line, repeated := first[key.Value]; {
		case !ok:
			text, hint := unknownKey(field, key.Value, known)
			d.problemAt(key, path, text, hint)
		case repeated:
			d.problemAt(key, path, fmt.Sprintf("is given twice, first on line %d", line), "remove one of the two")
		default:
			first[key.Value] = key.Line
			d.value(value, path, v.Field(index), depth+1)
		}
	}
}

// addressOf is the address of a machine, which may be written as that alone.
func addressOf(machine any) *string {
	switch m := machine.(type) {
	case *Host:
		return &m.Address
	case *APIServer:
		return &m.Address
	}
	return nil
}

func (d *document) list(n *yaml.Node, field string, v reflect.Value, depth int) {
	if n.Kind != yaml.SequenceNode {
		d.unreadable(n, field, "is "+kindName(n)+" where a list belongs", `write one "- " line for each`)
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, item := range n.Content {
		d.value(item, element(field, i), v.Index(i), depth+1)
	}
}

func (d *document) stringMap(n *yaml.Node, field string, v reflect.Value, depth int) {
	if n.Kind != yaml.MappingNode {
		d.unreadable(n, field, "is "+kindName(n)+" where a mapping belongs", `write "name: value" lines`)
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		path := join(field, printable(key.Value))
		if earlier := v.MapIndex(reflect.ValueOf(key.Value)); earlier.IsValid() {
			d.problemAt(key, path, "is given twice", "remove one of the two")
			continue
		}
		item := reflect.New(v.Type().Elem()).Elem()
		d.value(n.Content[i+1], path, item, depth+1)
		v.SetMapIndex(reflect.ValueOf(key.Value), item)
	}
}

func (d *document) text(n *yaml.Node, field string, into encoding.TextUnmarshaler) {
	s, ok := d.scalar(n, field)
	if !ok {
		return
	}
	if err := into.UnmarshalText([]byte(s)); err != nil {
		d.unreadable(n, field, fmt.Sprintf("%q is %s", printable(s), err), "write a number and a unit, such as 365d or 10y")
	}
}

// integer decodes a number that is not 0: zero stands for "not given" from here
// on.
func (d *document) integer(n *yaml.Node, field string, v reflect.Value) {
	s, ok := d.scalar(n, field)
	if !ok {
		return
	}
	i, err := strconv.Atoi(s)
	switch {
	case err != nil:
		d.unreadable(n, field, fmt.Sprintf("%q is not a number", printable(s)), "write digits only")
		return
	case i == 0 && strings.HasSuffix(strings.ToLower(field), "port"):
		d.unreadable(n, field, "0 is not a port", "write a number from 1 to 65535, or remove the line")
		return
	case i == 0:
		d.unreadable(n, field, "is 0", "write 1 or more, or remove the line")
		return
	}
	v.SetInt(int64(i))
}

func (d *document) boolean(n *yaml.Node, field string, v reflect.Value) {
	s, ok := d.scalar(n, field)
	switch {
	case !ok:
	case s != "true" && s != "false":
		d.unreadable(n, field, fmt.Sprintf("%q is neither true nor false", printable(s)), "write true, or remove the line")
	default:
		v.SetBool(s == "true")
	}
}

// scalar returns the text of a scalar with its variables replaced.
func (d *document) scalar(n *yaml.Node, field string) (string, bool) {
	return d.single(n, field, func(s string) (string, error) { return expand(s, d.lookupEnv) })
}

// literal returns the text of a scalar as it is.
func (d *document) literal(n *yaml.Node, field string) (string, bool) {
	return d.single(n, field, func(s string) (string, error) { return s, nil })
}

func (d *document) single(n *yaml.Node, field string, read func(string) (string, error)) (string, bool) {
	if n.Kind != yaml.ScalarNode {
		d.unreadable(n, field, "is "+kindName(n)+" where a single value belongs", "write one value")
		return "", false
	}
	s, err := read(n.Value)
	if err != nil {
		d.unreadable(n, field, err.Error(), "set it before running muster, or write ${NAME:-default}")
		return "", false
	}
	if s == "" {
		d.unreadable(n, field, "is empty", "write a value, or remove the line")
		return "", false
	}
	return s, true
}

var variable = regexp.MustCompile(`\$\{([^}]*)\}`)

// variableName is POSIX's idea of a name in the environment.
var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// expand replaces ${NAME} and ${NAME:-default} in s. As in a shell, the
// default also stands in for a variable that is set and empty.
func expand(s string, lookup func(string) (string, bool)) (string, error) {
	var failure error
	fail := func(text string) string {
		if failure == nil {
			failure = fmt.Errorf("%s", text)
		}
		return ""
	}
	result := variable.ReplaceAllStringFunc(s, func(reference string) string {
		name, fallback, hasFallback := strings.Cut(reference[2:len(reference)-1], ":-")
		if !variableName.MatchString(name) {
			return fail(fmt.Sprintf("%q is not the name of a variable", printable(name)))
		}
		value, found := lookup(name)
		switch {
		case value != "":
			return value
		case hasFallback:
			return fallback
		case found:
			return fail(fmt.Sprintf("the environment variable %s is empty", name))
		}
		return fail(fmt.Sprintf("the environment variable %s is not set", name))
	})
	return result, failure
}

// keysOf maps the YAML key of each field of a struct to the field's index.
func keysOf(t reflect.Type) map[string]int {
	keys := map[string]int{}
	for i := range t.NumField() {
		if !t.Field(i).IsExported() {
			continue
		}
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
		keys[name] = i
	}
	return keys
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	default:
		return "a single value"
	}
}

// printable returns s fit for a one-line message: short, and without
// characters that would move the cursor.
func printable(s string) string {
	const longest = 60
	s = strings.Map(func(r rune) rune {
		if strconv.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
	if runes := []rune(s); len(runes) > longest {
		return string(runes[:longest]) + "..."
	}
	return s
}
