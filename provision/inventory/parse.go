package inventory

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// maxReported bounds the problems reported for one cause that tends to repeat
// on every line.
const maxReported = 10

// parse turns the text into the root nodes of its documents. It returns none
// after recording why.
func (d *document) parse(text []byte) []*yaml.Node {
	if len(text) > MaxSize {
		d.problem("", fmt.Sprintf("the file is larger than %d KiB", MaxSize>>10),
			"write an inventory: a list of controllers needs a few lines")
		return nil
	}
	if !d.checkCharacters(text) {
		return nil
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var roots []*yaml.Node
	for {
		var doc yaml.Node
		switch err := decoder.Decode(&doc); {
		case err == nil && doc.Content[0].Tag == "!!null":
		case err == nil:
			roots = append(roots, doc.Content[0])
		case !errors.Is(err, io.EOF):
			d.syntaxProblem(text, err)
			return nil
		case len(roots) == 0:
			d.problem("", "the file is empty", "write cluster: NAME and a list of controllers, or start with muster init")
			return nil
		default:
			return roots
		}
	}
}

// checkCharacters reports what YAML forbids in any text, with positions that
// the parser would not give. It says whether parsing makes sense.
func (d *document) checkCharacters(text []byte) bool {
	found := 0
	report := func(line, column int, what, hint string) {
		if found++; found <= maxReported {
			d.problems = append(d.problems, Problem{File: d.file, Line: line, Column: column, Text: what, Hint: hint})
		}
	}
	lines := bytes.Split(bytes.TrimPrefix(text, []byte("\uFEFF")), []byte("\n"))
	for i, line := range lines {
		line = bytes.TrimSuffix(line, []byte("\r"))
		content := bytes.TrimLeft(line, " \t")
		indent := line[:len(line)-len(content)]
		if tab := bytes.IndexByte(indent, '\t'); tab >= 0 && len(content) > 0 && content[0] != '#' {
			report(i+1, tab+1, "the line is indented with a tab", "write spaces: YAML does not allow tabs here")
		}
		column := 0
		for rest := line; len(rest) > 0; {
			r, size := utf8.DecodeRune(rest)
			column++
			switch {
			case r == utf8.RuneError && size == 1:
				report(i+1, column, "the text is not UTF-8", "save the file as UTF-8")
				size = len(rest) // what follows on this line is likely the same
			case r < ' ' && r != '\t', r == 0x7f:
				report(i+1, column, fmt.Sprintf("the control character U+%04X is not allowed", r), "remove it")
			}
			rest = rest[size:]
		}
	}
	return found == 0
}

// syntaxProblem records an error of the YAML parser, which starts with
// "yaml: " and usually names a line but never a column.
func (d *document) syntaxProblem(text []byte, err error) {
	message, line := strings.TrimPrefix(err.Error(), "yaml: "), 1
	if m := regexp.MustCompile(`^line (\d+): `).FindStringSubmatch(message); m != nil {
		message = message[len(m[0]):]
		if n, err := strconv.Atoi(m[1]); err == nil {
			line = n
		}
	}
	// yaml.v3 counts the lines of its scanner's errors from 1, but those of
	// its parser's from 0.
	if strings.HasPrefix(message, "did not find expected") {
		line++
	}
	if anchor, ok := strings.CutPrefix(message, "unknown anchor '"); ok {
		anchor, _, _ = strings.Cut(anchor, "'")
		before, _, _ := bytes.Cut(text, []byte("*"+anchor))
		line = bytes.Count(before, []byte("\n")) + 1
	}
	lines := bytes.Split(text, []byte("\n"))
	line = min(line, len(lines))
	content := lines[line-1]
	hint := "check the indentation, colons and quotes around this line"
	if bytes.Contains(content, []byte("${")) {
		hint = `check the indentation and colons on this line, and write "${NAME}" in quotes inside { } or [ ]`
	}
	d.problems = append(d.problems, Problem{
		File: d.file, Line: line, Column: len(content) - len(bytes.TrimLeft(content, " \t")) + 1,
		Text: "not valid YAML: " + printable(message), Hint: hint,
	})
}
