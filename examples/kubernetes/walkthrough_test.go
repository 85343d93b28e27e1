package kubernetes

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// walkthrough is a page that is followed by its readers and by a test.
type walkthrough struct {
	path   string
	blocks []block
}

// block is what the page has between two fences.
type block struct {
	language string
	text     string
	section  string // the heading above it
}

var fenced = regexp.MustCompile("(?ms)^## ([^\n]+)$|^```(\\w+)\n(.*?)^```$")

func readWalkthrough(t *testing.T, path string) walkthrough {
	t.Helper()
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	w, section := walkthrough{path: path}, ""
	for _, found := range fenced.FindAllStringSubmatch(string(page), -1) {
		if found[1] != "" {
			section = found[1]
			continue
		}
		w.blocks = append(w.blocks, block{language: found[2], text: found[3], section: section})
	}
	return w
}

// file is the block of that language which starts so.
func (w walkthrough) file(t *testing.T, language, start string) string {
	t.Helper()
	for _, b := range w.blocks {
		if b.language == language && strings.HasPrefix(b.text, start) {
			return b.text
		}
	}
	t.Fatalf("%s has no block of %s that starts with %q", w.path, language, start)
	return ""
}
