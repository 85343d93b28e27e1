package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"muster/pki"
	"muster/provision"
)

// killRun starts a command that prints JSON lines and kills it a moment after
// so many of them; a negative number never kills it. It returns how many lines
// there were, and the last one.
func (w *workstation) killRun(t *testing.T, events int, moment time.Duration, args ...string) (seen int, last string, killed bool) {
	t.Helper()
	cmd := w.command(append(args, "-o", "json")...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	strike := func() {
		time.AfterFunc(moment, func() { _ = cmd.Process.Kill() }) // may be over already
	}
	if events == 0 {
		strike()
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		last = lines.Text()
		if seen++; seen == events {
			strike()
		}
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		t.Fatalf("muster %s failed by itself:\n%s\n%s", strings.Join(args, " "), last, &errs)
	}
	return seen, last, err != nil
}

// killedRotating kills replacements of the CA, and renewals in between, at
// random moments. Each time the members go on and the next run goes on with
// what it finds, until the last one, which nobody kills.
func (w *workstation) killedRotating(t *testing.T) {
	random := w.random(t)
	file := w.hosts(t)
	first := w.mustApply(t, file)
	rotate := []string{"certs", "rotate-ca", "--yes", "-f", file}
	total, _, _ := w.killRun(t, -1, 0, rotate...)
	phases := map[pki.Phase]int{}
	for i := range (*kills + 9) / 10 {
		args := rotate
		if random.IntN(4) == 0 {
			args = []string{"certs", "renew", "--all", "-f", file}
		}
		_, last, killed := w.killRun(t, random.IntN(total), time.Duration(random.Int64N(int64(momentAfter))), args...)
		check := w.certsCheck(t, file)
		phases[check.Phase]++
		t.Logf("%2d %s killed=%t in phase %s after %.120s", i, args[1], killed, check.Phase, last)
		for _, c := range check.Certificates {
			if c.Place == provision.PlaceServed && c.DaysLeft < 1 {
				t.Errorf("%s serves %+v", c.On, c)
			}
		}
	}
	t.Logf("phases after the kills: %v", phases)
	if check := w.certsCheck(t, file); check.Phase != pki.Settled {
		if _, last, _ := w.killRun(t, -1, 0, rotate...); !strings.Contains(last, `"phase":"settled"`) {
			t.Errorf("the last rotation ends with %s", last)
		}
	}
	w.killRun(t, -1, 0, "certs", "renew", "-f", file)
	if check := w.certsCheck(t, file); !check.OK {
		t.Errorf("in the end: %+v", check)
	}
	last := w.mustApply(t, file)
	if last.Changes != 0 || last.Status.ClusterID != first.Status.ClusterID {
		t.Errorf("apply in the end makes %d changes, to cluster %s, which was %s", last.Changes, last.Status.ClusterID, first.Status.ClusterID)
	}
}

// certsCheck looks at all certificates. That some of them need attention is an
// answer too.
func (w *workstation) certsCheck(t *testing.T, file string) provision.CertificateCheck {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := w.command("certs", "check", "-f", file, "-o", "json")
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var check provision.CertificateCheck
	if bad := json.Unmarshal(out.Bytes(), &check); bad != nil {
		t.Fatalf("certs check: %v, %v\n%s%s", err, bad, &out, &errs)
	}
	return check
}
