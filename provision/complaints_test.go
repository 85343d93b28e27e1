package provision

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"muster/provision/step"
)

// proof is what a row of COMPLAINTS.md ends with: `package.TestName`, with the
// name of a subtest or without, or a `path` from the directory of that file.
var proof = regexp.MustCompile("`([^`]+)`")

// Every test and every file that COMPLAINTS.md names exists, and every row names
// one.
func TestComplaintsHaveTests(t *testing.T) {
	text, err := os.ReadFile("COMPLAINTS.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := testsOf(t, "..")
	rows := 0
	for i, line := range strings.Split(string(text), "\n") {
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if !strings.HasPrefix(line, "|") || strings.Contains(line, "| ---") || strings.Contains(line, "| test |") {
			continue
		}
		rows++
		named := proof.FindAllStringSubmatch(cells[len(cells)-1], -1)
		if len(named) == 0 {
			t.Errorf("line %d names no test: %s", i+1, line)
		}
		for _, n := range named {
			name, sub, _ := strings.Cut(n[1], "/")
			if !strings.Contains(name, ".Test") {
				if _, err := os.Stat(n[1]); err != nil {
					t.Errorf("line %d: %v", i+1, err)
				}
				continue
			}
			if !tests[name] || sub != "" && !tests[strings.Split(name, ".")[0]+" "+sub] {
				t.Errorf("line %d: there is no %s", i+1, n[1])
			}
		}
	}
	if rows < 40 {
		t.Errorf("only %d rows were found", rows)
	}
}

// testsOf are the tests below a directory as "package.TestName", and as
// "package text" every text that could be the name of a subtest.
func testsOf(t *testing.T, root string) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && strings.HasPrefix(d.Name(), ".") && len(d.Name()) > 2 {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Recv == nil {
					found[file.Name.Name+"."+n.Name.Name] = true
				}
			case *ast.BasicLit:
				if n.Kind == token.STRING {
					found[file.Name.Name+" "+strings.Trim(n.Value, "`\"")] = true
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// No member of a new cluster is ready before the others are there. Whoever
// waits for the first one waits for ever; apply starts all of them.
func TestMembersStartTogether(t *testing.T) {
	l := newLab(t, 3)
	l.mustApply()
	for _, h := range l.hosts {
		l.console(h, "systemctl stop musterd")
	}
	if out, status := l.hosts[0].Console(l.context(), "timeout 2 systemctl start musterd"); status != 124 {
		t.Fatalf("a member alone: exit status %d: %s", status, out)
	}
	l.mustApply()
	begun := 0
	for _, e := range l.events.all() {
		switch {
		case e.Kind == step.Changed && strings.HasPrefix(e.Text, "started "):
			begun++
		case e.Kind == step.Started && e.Step == "ready" && begun < 2: // of the first one systemd may still expect to come up
			t.Errorf("%d members were started before the first one was waited for", begun)
		}
	}
}

// How long members may take is a setting, which the error names, and too short
// a time does no harm.
func TestTimeoutIsASetting(t *testing.T) {
	l := newLab(t, 1)
	usual := l.opts.ReadyTimeout
	l.opts.ReadyTimeout = time.Millisecond
	l.mustFail("controller-0: the member was not ready within 1ms (--timeout)")
	l.opts.ReadyTimeout = usual
	l.mustApply()
}

// A program that runs is replaced by another one, and by nothing else.
func TestUpgradeOfARunningMember(t *testing.T) {
	l := newLab(t, 1)
	id := l.mustApply().Status.ClusterID
	next := t.TempDir()
	for name, more := range map[string]string{"musterd": "what is behind a program's end changes nothing but its hash", "musterctl": ""} {
		text, err := os.ReadFile(filepath.Join(l.opts.BinaryDir, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(next, name), append(text, more...), 0o700) //nolint:gosec // it is a program
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	l.opts.BinaryDir = next
	report := l.mustApply()
	changed := l.events.texts(step.Changed)
	if report.Status.ClusterID != id || report.Changes != 2 || len(restarts(changed)) != 1 || !strings.Contains(changed[0], "installed /usr/local/bin/musterd ") {
		t.Errorf("cluster %s, was %s; changes %q", report.Status.ClusterID, id, changed)
	}
	if again := l.mustApply(); again.Changes != 0 {
		t.Errorf("%d changes were left", again.Changes)
	}
}

// A data directory that is a link is refused: what is behind it may belong to
// somebody, or be gone after the next boot.
func TestDataDirectoryIsALink(t *testing.T) {
	l := newLab(t, 2)
	l.console(l.hosts[1], "mkdir -p /srv/elsewhere && ln -sfn /srv/elsewhere /var/lib/muster")
	before := l.snapshot()
	l.mustFail("controller-1: /var/lib/muster is a symbolic link; name the real directory as dataDir")
	l.mustBeUntouched(before)
	l.console(l.hosts[1], "rm /var/lib/muster")
	l.mustApply()
}
