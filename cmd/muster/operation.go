package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"muster/provision"
	"muster/provision/inventory"
	"muster/provision/remote"
)

// operationFlags are those of the commands that work on hosts.
type operationFlags struct {
	binaryDir   string
	concurrency int
	timeout     patience
	yes         bool
	approved    string // the fingerprint of a plan
}

// asks says that the operator wants to be asked.
func (f operationFlags) asks() bool { return !f.yes && f.approved == "" }

// check refuses numbers that mean nothing, rather than replace them silently.
func (f operationFlags) check() error {
	if f.concurrency < 1 {
		return &usageError{fmt.Errorf("--concurrency is %d", f.concurrency), "write how many hosts to work on at once, 1 or more"}
	}
	if f.timeout.given && f.timeout.Duration <= 0 {
		return &usageError{fmt.Errorf("--timeout is %v", f.timeout.Duration), "write a duration such as 90s or 5m"}
	}
	return nil
}

// patience is a flag for how long to wait for members. Without it that depends on
// who starts them.
type patience struct {
	time.Duration
	given bool
}

func (p *patience) addTo(set *pflag.FlagSet) {
	set.Var(p, "timeout", fmt.Sprintf("how long to wait for members to be ready (default %v, %v for static pods)", provision.DefaultReadyTimeout, provision.StackedReadyTimeout))
}

// Set implements pflag.Value, as Type does.
func (p *patience) Set(text string) (err error) {
	p.given = true
	p.Duration, err = time.ParseDuration(text)
	return err
}

func (*patience) Type() string { return "duration" }

// String is empty for what was not given: the help says what that means.
func (p *patience) String() string {
	if !p.given {
		return ""
	}
	return p.Duration.String()
}

// options puts together what an operation needs from the command line. The
// context ends the questions it may ask.
func (a *app) options(ctx context.Context, f operationFlags, r reporter) provision.Options {
	o := provision.Options{
		SSH:          remote.Options{Log: a.log, ConnectTimeout: a.connectTimeout},
		CAKeys:       a.caKeys(ctx),
		BinaryDir:    f.binaryDir,
		Concurrency:  f.concurrency,
		ReadyTimeout: f.timeout.Duration,
		Reporter:     a.reporter(r),
		Log:          a.log,
	}
	if a.canPrompt() {
		o.SSH.Prompt = func(question string) ([]byte, error) { return a.askSecret(ctx, question) }
	}
	return o
}

// askSecret asks on the terminal, without showing what is typed. A live
// display stands still meanwhile, and finds its place as it left it. When the
// context ends first, the terminal is as it was before.
func (a *app) askSecret(ctx context.Context, question string) ([]byte, error) {
	a.screen.Lock()
	defer a.screen.Unlock()
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open the terminal: %w", err)
	}
	defer tty.Close()
	fd := int(tty.Fd()) //nolint:gosec // a descriptor fits an int
	before, err := term.GetState(fd)
	if err != nil {
		return nil, fmt.Errorf("look at the terminal: %w", err)
	}
	fmt.Fprintf(tty, "%s: ", question)
	secret, err := answer(ctx, func() ([]byte, error) { return term.ReadPassword(fd) })
	if ctx.Err() != nil {
		err = errors.Join(err, term.Restore(fd, before))
	}
	fmt.Fprint(tty, "\r\x1b[K")
	return secret, err
}

// askYes asks a question on standard error and reads the answer from standard
// input. Anything but yes is no.
func (a *app) askYes(ctx context.Context, question string) (bool, error) {
	fmt.Fprint(a.err, question)
	text, err := answer(ctx, func() (string, error) { return bufio.NewReader(a.in).ReadString('\n') })
	if err != nil {
		fmt.Fprintln(a.err)
		return false, fmt.Errorf("read the answer: %w", err)
	}
	text = strings.ToLower(strings.TrimSpace(text))
	return text == "y" || text == "yes", nil
}

// answer waits for what ask returns, or for the context to end: a read from
// the terminal cannot be interrupted, and is left behind.
func answer[T any](ctx context.Context, ask func() (T, error)) (T, error) {
	type reply struct {
		value T
		err   error
	}
	replies := make(chan reply, 1)
	go func() {
		value, err := ask()
		replies <- reply{value, err}
	}()
	select {
	case r := <-replies:
		return r.value, r.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}

func hostNames(cluster *inventory.Cluster) []string {
	names := make([]string, len(cluster.Hosts))
	for i, h := range cluster.Hosts {
		names[i] = h.Name
	}
	return names
}

// explain prints what a failure knows beyond its error, which is printed
// after it.
func (a *app) explain(err error) {
	var f *provision.Failure
	if !errors.As(err, &f) {
		return
	}
	if a.wantsJSON() { // report will
		return
	}
	_, _ = io.WriteString(a.err, f.Details())
}

// errorLine is the last line of an operation's JSON output when it failed.
type errorLine struct {
	Time    time.Time `json:"time"`
	Kind    string    `json:"kind"`
	Cluster string    `json:"cluster,omitempty"` // when there are several
	Error   string    `json:"error"`
	Hint    string    `json:"hint"`
	Details string    `json:"details"`
	// Problems are those of an inventory.
	Problems inventory.Problems `json:"problems,omitempty"`
}

func newErrorLine(cluster string, err error) errorLine {
	line := errorLine{Time: time.Now(), Kind: "error", Cluster: cluster, Error: err.Error()}
	var h hinter
	if errors.As(err, &h) {
		line.Hint = h.Hint()
	}
	var f *provision.Failure
	if errors.As(err, &f) {
		line.Details = f.Details()
	}
	if errors.As(err, &line.Problems) {
		line.Error = "the inventory cannot be used: " + line.Problems.Count()
	}
	return line
}
