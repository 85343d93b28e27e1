package provision

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"muster/pki"
	"muster/provision/remote"
	"muster/provision/runner"
	"muster/provision/step"
)

// Failure is an operation that ended before its goal. It carries what the
// hosts had to say.
type Failure struct {
	Operation string
	Errors    step.Errors
	Diagnoses []Diagnosis
}

// Diagnosis is what a host that failed says about its member.
type Diagnosis struct {
	Host    string
	Unit    string   // one line of state
	Journal []string // the last lines, oldest first
}

func (f *Failure) Error() string { return f.Operation + " failed: " + f.Errors.Error() }

// Unwrap gives errors.Is and errors.As the causes.
func (f *Failure) Unwrap() error { return f.Errors }

// Hint says what to do: what the first cause knows, or the general rule.
func (f *Failure) Hint() string {
	var cause interface{ Hint() string }
	if errors.As(f.Errors, &cause) && cause.Hint() != "" {
		return cause.Hint()
	}
	if errors.Is(f.Errors, rpctypes.ErrPermissionDenied) || errors.Is(f.Errors, rpctypes.ErrUserEmpty) {
		return fmt.Sprintf("auth is on, and muster's certificate is the user %[1]s; give it the role root: etcdctl --user root user add %[1]s --no-password, etcdctl --user root user grant-role %[1]s root", pki.HealthcheckUser)
	}
	return "correct the cause and run the same command again; it goes on from what is there"
}

// Details is what a person needs to find the cause, over several lines: for
// each failure the step, the host, the command and its output, and the end of
// the member's journal. A failure that has no more to tell than its error has
// no details.
func (f *Failure) Details() string {
	var b strings.Builder
	for _, e := range f.Errors {
		evidence := f.evidence(e)
		if evidence == "" {
			continue
		}
		block(&b, "step", e.Step)
		block(&b, "host", e.Host)
		b.WriteString(evidence)
	}
	return b.String()
}

func (f *Failure) evidence(e *step.Error) string {
	if errors.Is(e, context.Canceled) || errors.Is(e, remote.ErrConnectionLost) {
		return "" // what was cut off is no clue, and a lost host cannot be asked
	}
	var b strings.Builder
	var failed *remote.CommandError
	if errors.As(e, &failed) {
		block(&b, "command", failed.Command.Label+"\n"+failed.Command.Text())
		block(&b, "output", failed.Output())
	}
	var back *step.RolledBackError
	if errors.As(e, &back) { // what it says now is that it runs again
		block(&b, "journal", strings.Join(back.Journal, "\n"))
		return b.String()
	}
	for _, d := range f.Diagnoses {
		if d.Host == e.Host || e.Host == "" {
			fmt.Fprintf(&b, "unit:    %s: %s\n", d.Host, d.Unit)
			block(&b, "journal", strings.Join(d.Journal, "\n"))
		}
	}
	return b.String()
}

// block writes a title and indented lines.
func block(b *strings.Builder, title, text string) {
	if text = strings.TrimSpace(text); text != "" {
		fmt.Fprintf(b, "%-8s %s\n", title+":", strings.ReplaceAll(text, "\n", "\n         "))
	}
}

const (
	journalLines    = 20
	diagnoseTimeout = 5 * time.Second
)

const diagnoseScript = `unit_facts | while read -r line; do
	case $line in
	ActiveState=* | SubState=* | Result=* | NRestarts=*) printf '%s ' "$line" ;;
	esac
done
echo
unit_log "$1"`

// diagnose wraps the error of a run into a Failure, and asks the hosts that
// failed for their unit's state and journal. A failure that names no host is
// everyone's.
func diagnose(ctx context.Context, r *step.Run, err error) error {
	f := &Failure{Operation: r.Operation}
	if !errors.As(err, &f.Errors) {
		return err
	}
	if ctx.Err() != nil { // interrupted: the operator wants the prompt back
		return f
	}
	ctx, cancel := context.WithTimeout(ctx, diagnoseTimeout)
	defer cancel()
	found := make([]*Diagnosis, len(r.Hosts))
	var wg sync.WaitGroup
	for i, h := range r.Hosts {
		if f.concerns(h) {
			wg.Go(func() { found[i] = askHost(ctx, h) })
		}
	}
	wg.Wait()
	for _, d := range found {
		if d != nil {
			f.Diagnoses = append(f.Diagnoses, *d)
		}
	}
	return f
}

// concerns says whether the host's member can have to do with the failure:
// the host failed, or the cluster did, and the member was installed.
func (f *Failure) concerns(h *step.Host) bool {
	if h.Remote == nil {
		return false
	}
	for _, e := range f.Errors {
		var early *step.PreflightError
		if errors.As(e, &early) || errors.Is(e, step.ErrLocked) || errors.Is(e, step.ErrLocal) {
			return false
		}
		if e.Host == h.Name || e.Host == "" {
			return true
		}
	}
	return false
}

func askHost(ctx context.Context, h *step.Host) *Diagnosis {
	result, err := h.Remote.Run(ctx, remote.Command{
		Label:     "read the journal",
		Functions: runner.Functions(h.Want), Script: diagnoseScript,
		Args:    []string{fmt.Sprint(journalLines)},
		AsLogin: h.Remote.Privilege().Problem != "",
	})
	if err != nil {
		return &Diagnosis{Host: h.Name, Unit: "unknown: " + err.Error()}
	}
	unit, journal, _ := strings.Cut(strings.TrimSpace(result.Stdout), "\n")
	return &Diagnosis{Host: h.Name, Unit: strings.TrimSpace(unit), Journal: strings.Split(journal, "\n")}
}
