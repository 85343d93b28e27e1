package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"muster/provision/journal"
	"muster/provision/practice"
)

func (l *lab) logs(logs LogOptions) ([]journal.Entry, error) {
	l.t.Helper()
	var got []journal.Entry
	err := Logs(l.context(), l.cluster, l.opts, logs, func(e journal.Entry) error {
		got = append(got, e)
		return nil
	})
	return got, err
}

func TestLogsAndExec(t *testing.T) {
	l := newLab(t, 3)
	l.opts.SSH.RetryFor = 100 * time.Millisecond
	l.mustApply()
	t.Run("logs", l.testLogs)
	t.Run("follow", l.testFollow)
	t.Run("exec", l.testExec)
}

func (l *lab) testLogs(t *testing.T) {
	all, err := l.logs(LogOptions{Lines: -1})
	if err != nil {
		t.Fatal(err)
	}
	hosts := map[string]int{}
	for _, e := range all {
		hosts[e.Host]++
	}
	if len(hosts) != 3 || !slices.IsSortedFunc(all, func(a, b journal.Entry) int { return a.Time.Compare(b.Time) }) {
		t.Errorf("%v entries, in order: false or a host is missing", hosts)
	}
	if !slices.ContainsFunc(all, func(e journal.Entry) bool {
		return e.Program == "musterd" && e.PID > 1 && strings.Contains(e.Message, "ready to serve client requests")
	}) {
		t.Errorf("the members' own messages are missing in %d entries", len(all))
	}
	if last, err := l.logs(LogOptions{Lines: 2}); err != nil || len(last) != 6 {
		t.Errorf("%d entries, %v", len(last), err)
	}
	if none, err := l.logs(LogOptions{Lines: -1, Since: time.Now().Add(time.Hour)}); err != nil || len(none) != 0 {
		t.Errorf("%d entries of the future, %v", len(none), err)
	}
	some, err := Select(l.cluster, []string{"controller-1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := Logs(l.context(), some, l.opts, LogOptions{Lines: 3}, func(e journal.Entry) error {
		if e.Host != "controller-1" {
			t.Errorf("an entry of %s", e.Host)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if _, err := Select(l.cluster, []string{"controller-9"}); err == nil || !strings.Contains(err.Error(), "it has controller-0, controller-1, controller-2") {
		t.Errorf("a host that is none: %v", err)
	}

	// A host out of reach: the others are read, and the error names it.
	l.hosts[1].Inject(practice.Faults{RefuseConnections: true})
	defer l.hosts[1].Inject(practice.Faults{})
	got, err := l.logs(LogOptions{Lines: 1})
	if err == nil || !strings.Contains(err.Error(), "controller-1") || len(got) != 2 {
		t.Errorf("%d entries, error %v", len(got), err)
	}
	// journalctl fails: what it says is the error.
	l.hosts[1].Inject(practice.Faults{FailCommands: map[string]string{"journalctl": "No journal files were found."}})
	if _, err = l.logs(LogOptions{Lines: 1}); err == nil || err.Error() != "controller-1: journalctl: No journal files were found." {
		t.Errorf("error %v", err)
	}
}

func (l *lab) testFollow(t *testing.T) {
	ctx, cancel := context.WithCancel(l.context())
	defer cancel()
	ended, begun := make(chan error, 1), make(chan struct{})
	var once sync.Once
	go func() {
		ended <- Logs(ctx, l.cluster, l.opts, LogOptions{Lines: 1, Follow: true}, func(e journal.Entry) error {
			once.Do(func() { close(begun) })
			if e.Host == "controller-2" && strings.Contains(e.Message, "Stopped musterd.service") {
				cancel()
			}
			return nil
		})
	}()
	select {
	case <-begun:
	case err := <-ended:
		t.Fatal(err)
	}
	l.sh(2, "systemctl stop musterd && systemctl start musterd")
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("what happened was not told")
	}
}

func (l *lab) exec(o ExecOptions) map[string]ExecResult {
	l.t.Helper()
	results := map[string]ExecResult{}
	if err := Exec(l.context(), l.cluster, l.opts, o, func(r ExecResult) { results[r.Host] = r }); err != nil {
		l.t.Fatal(err)
	}
	return results
}

func (l *lab) testExec(t *testing.T) {
	// Words reach the program as they are.
	for host, r := range l.exec(ExecOptions{Command: []string{"printf", "%s|", "a b", "$HOME", "it's"}}) {
		if r.ExitStatus != 0 || r.Stdout != "a b|$HOME|it's|" || r.Error != "" {
			t.Errorf("%s: %+v", host, r)
		}
	}
	// One word is a script.
	results := l.exec(ExecOptions{Command: []string{`echo out; echo err >&2; [ "$(hostname)" = controller-1 ] && exit 3; exit 0`}})
	for host, r := range results {
		want := 0
		if host == "controller-1" {
			want = 3
		}
		if r.ExitStatus != want || r.Stdout != "out\n" || r.Stderr != "err\n" || r.Error != "" {
			t.Errorf("%s: %+v", host, r)
		}
	}
	l.hosts[0].Inject(practice.Faults{RefuseConnections: true})
	defer l.hosts[0].Inject(practice.Faults{})
	results = l.exec(ExecOptions{Command: []string{"hostname"}})
	if r := results["controller-0"]; r.ExitStatus != -1 || !strings.Contains(r.Error, "connect") {
		t.Errorf("a host out of reach: %+v", r)
	}
	if r := results["controller-2"]; r.Stdout != "controller-2\n" {
		t.Errorf("%+v", r)
	}
	// It ends with the context.
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	err := Exec(ctx, l.cluster, l.opts, ExecOptions{Command: []string{"sleep", "60"}}, func(r ExecResult) {
		if r.ExitStatus != -1 || r.Error == "" {
			t.Error(fmt.Sprintf("%s was not interrupted: ", r.Host), errors.New(r.Error))
		}
	})
	if err != nil {
		t.Error(err)
	}
}
