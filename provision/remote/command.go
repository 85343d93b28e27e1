package remote

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// Command is a POSIX shell script to run on a host.
type Command struct {
	// Label says in a few words what the script does, for messages: "read
	// the facts".
	Label string
	// Functions are shell functions that the script calls. They are left out
	// where a person is shown the script.
	Functions string
	Script    string
	// Args are $1, $2, ... They appear in process lists: never put a secret
	// here, use Stdin.
	Args  []string
	Stdin io.Reader
	// AsLogin runs the script as the user logged in rather than as root.
	AsLogin bool
}

// Result is the outcome of a command that exited with status 0.
type Result struct {
	Stdout  string
	Stderr  string
	Lost    int64 // bytes of both that were beyond OutputLimit
	Elapsed time.Duration
}

// CommandError is a command that ran and failed, or whose connection was lost.
type CommandError struct {
	Host    string
	Command Command // without Stdin
	// ExitStatus is -1 when the command did not report one.
	ExitStatus int
	Stdout     string
	Stderr     string
	Lost       int64 // bytes of both that were beyond OutputLimit
	// Err is the cause when there is no exit status.
	Err error
}

func (e *CommandError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s: ", e.Host, e.Command.Label)
	if e.Err != nil {
		b.WriteString(e.Err.Error())
	} else {
		fmt.Fprintf(&b, "exit status %d", e.ExitStatus)
	}
	if text := lastLines(e.Output(), 3); text != "" {
		b.WriteString(": " + strings.ReplaceAll(text, "\n", "; "))
	}
	return b.String()
}

func (e *CommandError) Unwrap() error { return e.Err }

// Output is what the command said: its standard error, or else its standard
// output.
func (e *CommandError) Output() string {
	if text := strings.TrimSpace(e.Stderr); text != "" {
		return text
	}
	return strings.TrimSpace(e.Stdout)
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// Text is the script with its arguments, as a person would want to see it.
func (c Command) Text() string {
	if len(c.Args) == 0 {
		return c.Script
	}
	args := make([]string, len(c.Args))
	for i, a := range c.Args {
		args[i] = quote(a)
	}
	return strings.TrimSpace(c.Script) + "\n# with arguments: " + strings.Join(args, " ")
}

// prelude makes every host speak the same language.
const prelude = "LC_ALL=C; export LC_ALL\n"

// line is what is handed to the login shell, whatever shell that is.
func (c Command) line(become []string) string {
	var words []string
	if !c.AsLogin {
		words = append(words, become...)
	}
	words = append(words, "sh", "-c", prelude+c.Functions+c.Script, "muster")
	words = append(words, c.Args...)
	for i, w := range words {
		words[i] = quote(w)
	}
	return strings.Join(words, " ")
}

// quote makes one word of any text for a POSIX shell. Words that need no
// quotes stay readable.
func quote(word string) string {
	if word != "" && strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:=,@%+") == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
