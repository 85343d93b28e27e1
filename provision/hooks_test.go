package provision

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"muster/provision/inventory"
	"muster/provision/step"
)

// hooks are those of the inventory that write into a file what they know.
func (l *lab) hooks(moments ...string) (yaml, file string) {
	file = filepath.Join(l.dir, "hooks.log")
	var b strings.Builder
	b.WriteString("hooks:\n")
	for _, m := range moments {
		fmt.Fprintf(&b, "  - {on: %s, run: 'echo \"$MUSTER_HOOK $MUSTER_OPERATION $MUSTER_CLUSTER ${MUSTER_HOST:-all} ${MUSTER_RESULT:--}\" >> hooks.log'}\n", m)
	}
	return b.String(), file
}

// ran returns what the hooks have written since, sorted.
func ran(t *testing.T, file string) []string {
	t.Helper()
	text, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

func TestHooks(t *testing.T) {
	l := newLab(t, 2)
	yaml, file := l.hooks(inventory.Moments()...)
	l.load(yaml)
	l.mustApply()
	got := ran(t, file)
	if len(got) != 10 || got[0] != "before-apply apply test all -" || got[9] != "after-apply apply test all ok" {
		t.Errorf("the hooks of the first apply: %q", got)
	}
	for _, host := range []string{"controller-0", "controller-1"} {
		var own []string
		for _, line := range got {
			if strings.Contains(line, host) {
				own = append(own, line)
			}
		}
		want := []string{
			"before-connect apply test " + host + " -", "after-connect apply test " + host + " -",
			"before-host apply test " + host + " -", "after-host apply test " + host + " ok",
		}
		if !slices.Equal(own, want) {
			t.Errorf("the hooks of %s: %q, want %q", host, own, want)
		}
	}

	// Nothing changes: no host is begun. One program differs: that host is
	// upgraded.
	l.mustApply()
	if got := ran(t, file); len(got) != 6 || slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "-host") }) {
		t.Errorf("the hooks of an apply without changes: %q", got)
	}
	l.sh(1, "echo x >> /usr/local/bin/musterctl")
	l.mustApply()
	got = ran(t, file)
	for _, want := range []string{"before-upgrade apply test controller-1 -", "after-upgrade apply test controller-1 ok", "after-host apply test controller-1 ok"} {
		if !slices.Contains(got, want) {
			t.Errorf("the hooks of an upgrade: %q, want %q", got, want)
		}
	}
	if slices.Contains(got, "before-host apply test controller-0 -") {
		t.Errorf("controller-0 has not changed: %q", got)
	}
	l.mustReset(ResetOptions{})
	if got := ran(t, file); !slices.Contains(got, "before-reset reset test all -") || !slices.Contains(got, "after-reset reset test all ok") {
		t.Errorf("the hooks of a reset: %q", got)
	}
}

func TestHooksThatFail(t *testing.T) {
	l := newLab(t, 1)
	for _, test := range []struct {
		on, says string
		changed  bool
	}{
		{"before-apply", `hook: the hook before-apply "echo no; exit 3": exit status 3`, false},
		{"before-connect", `connect: the hook before-connect "echo no; exit 3": exit status 3`, false},
		{"before-host", `the hook before-host "echo no; exit 3": exit status 3`, false},
	} {
		t.Run(test.on, func(t *testing.T) {
			l.load("hooks:\n  - {on: " + test.on + ", run: 'echo no; exit 3'}\n  - {on: after-apply, run: 'echo \"$MUSTER_RESULT $MUSTER_ERROR\"'}\n")
			_, err := l.apply()
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %v, want %q", err, test.says)
			}
			for _, changed := range l.events.texts(step.Changed) {
				if strings.HasPrefix(changed, "controller-0") {
					t.Errorf("changed: %s", changed)
				}
			}
			notes := l.events.texts(step.Note)
			if len(notes) != 2 || !strings.HasSuffix(notes[0], ": "+test.on+": no") || !strings.HasPrefix(notes[1], ": after-apply: failed ") {
				t.Errorf("notes: %q", notes)
			}
		})
	}
	// What has happened has happened.
	l.load("hooks: [{on: after-apply, run: 'exit 4'}]\n")
	l.mustApply()
	if warnings := l.events.texts(step.Warning); !slices.Contains(warnings, `: the hook after-apply "exit 4": exit status 4`) {
		t.Errorf("warnings: %q", warnings)
	}
	// An interrupt ends a hook.
	l.load("hooks: [{on: before-apply, run: 'echo x; exec sleep 600'}]\n")
	ctx, cancel := context.WithCancel(l.context())
	cancel()
	if _, err := Apply(ctx, l.cluster, l.opts); err == nil {
		t.Error("went on after an interrupt")
	}
}
