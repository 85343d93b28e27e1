package practice

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// Exit statuses of the shell itself, POSIX 2.8.2.
const (
	exitUsage    = 2
	exitNotFound = 127
)

// userShell runs POSIX shell scripts on a host as one user.
type userShell struct {
	host  *Host
	files *view
	env   map[string]string
}

func newUserShell(h *Host, user string) *userShell {
	return &userShell{host: h, files: h.files.as(user), env: map[string]string{
		"HOME": h.files.accounts.homeOf(user), "USER": user, "LOGNAME": user, "SHELL": "/bin/sh",
		"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	}}
}

// stdio is where a script reads and writes.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

// run runs a script and returns its exit status. params are $0, $1, ...
func (s *userShell) run(ctx context.Context, script string, params []string, dir string, std stdio) int {
	name := "sh"
	if len(params) > 0 {
		name = params[0]
	}
	// What is not POSIX is refused; what runs is parsed as bash, since the
	// interpreter knows export and its like in that form only.
	var prog *syntax.File
	for _, variant := range []syntax.LangVariant{syntax.LangPOSIX, syntax.LangBash} {
		var err error
		if prog, err = syntax.NewParser(syntax.Variant(variant)).Parse(strings.NewReader(script), name); err != nil {
			fmt.Fprintf(std.err, "sh: %v\n", err)
			return exitUsage
		}
	}
	return s.runParsed(ctx, prog, params, dir, std)
}

// runParsed is run for what is parsed already.
func (s *userShell) runParsed(ctx context.Context, prog syntax.Node, params []string, dir string, std stdio) int {
	env := make([]string, 0, len(s.env))
	for k, v := range s.env {
		env = append(env, k+"="+v)
	}
	options := []interp.RunnerOption{
		interp.Env(expand.ListEnviron(env...)),
		interp.Dir("/"),
		interp.StdIO(std.in, std.out, std.err),
		interp.CallHandler(s.call),
		interp.OpenHandler(s.open),
		interp.ReadDirHandler2(s.readDir),
		interp.StatHandler(s.stat),
		interp.AccessHandler(s.access),
		interp.ExecHandlers(func(interp.ExecHandlerFunc) interp.ExecHandlerFunc { return s.exec }),
	}
	if len(params) > 1 {
		options = append(options, interp.Params(append([]string{"--"}, params[1:]...)...))
	}
	runner, err := interp.New(options...)
	if err != nil {
		fmt.Fprintf(std.err, "practice host: start a shell: %v\n", err)
		return exitUsage
	}
	// The directory exists on the host only, so interp.Dir cannot set it.
	if err = runner.Run(ctx, commandOf("cd", dir)); err == nil {
		err = runner.Run(ctx, prog)
	}
	var status interp.ExitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case ctx.Err() != nil:
		return 128 + 1 // as after SIGHUP
	}
	fmt.Fprintf(std.err, "practice host: sh: %v\n", err)
	return exitUsage
}

// commandOf is the command of these words, whatever characters they have.
func commandOf(words ...string) syntax.Node {
	call := &syntax.CallExpr{}
	for _, w := range words {
		call.Args = append(call.Args, &syntax.Word{Parts: []syntax.WordPart{&syntax.SglQuoted{Value: w}}})
	}
	return &syntax.Stmt{Cmd: call}
}

// call sends to exec what the interpreter would answer from this machine.
func (s *userShell) call(_ context.Context, args []string) ([]string, error) {
	switch {
	case args[0] == "command" && len(args) > 1 && (args[1] == "-v" || args[1] == "-V"):
		return append([]string{"which"}, args[2:]...), nil
	case args[0] == "command" && len(args) > 1 && !interp.IsBuiltin(args[1]):
		return args[1:], nil
	case args[0] == "umask", args[0] == "kill":
		return append([]string{builtinPrefix + args[0]}, args[1:]...), nil
	}
	return args, nil
}

// builtinPrefix marks a tool that stands in for a builtin of the shell.
const builtinPrefix = "builtin "

// absolute makes a path of a script absolute.
func absolute(ctx context.Context, name string) string {
	if path.IsAbs(name) {
		return path.Clean(name)
	}
	return path.Join(interp.HandlerCtx(ctx).Dir, name)
}

func (s *userShell) open(ctx context.Context, name string, flags int, mode fs.FileMode) (io.ReadWriteCloser, error) {
	name = absolute(ctx, name)
	switch name {
	case "/dev/null", "/dev/zero", "/dev/urandom":
		return os.OpenFile(name, flags&^os.O_CREATE&^os.O_TRUNC, 0)
	}
	if flags&(os.O_WRONLY|os.O_RDWR) == 0 {
		f, err := s.files.open(name)
		if err != nil {
			return nil, shellError(err, name)
		}
		return f, nil
	}
	f, err := s.files.create(name, flags, 0o666)
	if err != nil {
		return nil, shellError(err, name)
	}
	return f, nil
}

// shellError has the type that the interpreter prints instead of giving up.
func shellError(err error, name string) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr
	}
	return &fs.PathError{Op: "open", Path: name, Err: err}
}

func (s *userShell) readDir(ctx context.Context, name string) ([]fs.DirEntry, error) {
	return s.files.readDir(absolute(ctx, name))
}

func (s *userShell) stat(ctx context.Context, name string, follow bool) (fs.FileInfo, error) {
	name = absolute(ctx, name)
	if strings.HasPrefix(name, "/dev/") {
		return os.Stat(name)
	}
	return s.files.stat(name, follow)
}

func (s *userShell) access(ctx context.Context, name string, mode interp.AccessMode) error {
	name = absolute(ctx, name)
	p, err := s.files.real(name)
	if err != nil {
		return err
	}
	info, err := os.Stat(p)
	if err != nil {
		return err
	}
	if mode&interp.AccessExec != 0 && !info.IsDir() && info.Mode()&0o111 == 0 {
		return fs.ErrPermission
	}
	return s.files.check("access", p, fs.FileMode(mode))
}

// exec runs one simple command: a tool of the table, or a program that was
// installed on the host.
func (s *userShell) exec(ctx context.Context, args []string) error {
	if s.host.faults.command(args) {
		go s.host.Reboot()
		<-ctx.Done()
		return ctx.Err()
	}
	if s.host.faults.restart(args) {
		if err := s.host.units.restartAll(ctx); err != nil {
			return err
		}
	}
	hc := interp.HandlerCtx(ctx)
	name := args[0]
	if message, ok := s.host.faults.get().FailCommands[path.Base(name)]; ok {
		fmt.Fprintln(hc.Stderr, message)
		return interp.ExitStatus(1)
	}
	for _, dir := range []string{"/bin/", "/usr/bin/", "/sbin/", "/usr/sbin/"} {
		name = strings.TrimPrefix(name, dir)
	}
	c := &call{
		userShell: s, ctx: ctx, name: name, args: args[1:], dir: hc.Dir,
		stdio: stdio{in: hc.Stdin, out: hc.Stdout, err: hc.Stderr},
	}
	hc.Env.Each(func(key string, v expand.Variable) bool {
		if v.Exported && v.IsSet() {
			c.env = append(c.env, key+"="+v.String())
		}
		return true
	})
	if t, ok := s.host.faults.tool(name); ok {
		defer interruptReads(ctx, hc.Stdin)()
		return c.finish(t(c))
	}
	if program, ok := s.program(c.dir, args[0]); ok {
		return c.finish(c.runProgram(program))
	}
	fmt.Fprintf(hc.Stderr, "practice host: %s: not found\n", args[0])
	return interp.ExitStatus(exitNotFound)
}

// interruptReads makes a read from in end when the context does, until the
// function it returns is called.
func interruptReads(ctx context.Context, in io.Reader) func() {
	f, ok := in.(*os.File)
	if !ok {
		return func() {}
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		// A regular file has no deadlines, and no read that blocks.
		_ = f.SetReadDeadline(time.Now())
	})
	return func() {
		if stop() {
			return
		}
		<-done
		_ = f.SetReadDeadline(time.Time{}) // as above
	}
}

// program finds an installed program: by path, or by name in /usr/local/bin.
// The paths are those on the host.
func (s *userShell) program(dir, name string) (string, bool) {
	if !strings.Contains(name, "/") {
		dir = "/usr/local/bin"
	}
	if !path.IsAbs(name) {
		name = path.Join(dir, name)
	}
	info, err := s.statProgram(name)
	return name, err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

func (s *userShell) statProgram(name string) (fs.FileInfo, error) {
	p, err := s.files.real(name)
	if err != nil {
		return nil, err
	}
	return os.Stat(p)
}

// nested runs words as a command of another shell, such as sudo's.
func (c *call) nested(as *userShell, words []string) error {
	return exitStatus(as.runParsed(c.ctx, commandOf(words...), nil, c.dir, c.stdio))
}

// shTool is sh: -c SCRIPT [NAME ARG...], FILE [ARG...] or a script on
// standard input.
func shTool(c *call) error {
	options, args := "", c.args
	var text, name string
	fromArgs := false
	for len(args) > 0 && strings.HasPrefix(args[0], "-") && args[0] != "-" {
		word := args[0]
		args = args[1:]
		if word == "--" {
			break
		}
		for _, flag := range word[1:] {
			switch flag {
			case 'e', 'u', 'x':
				options += string(flag)
			case 'c':
				fromArgs = true
			case 's':
			default:
				return c.fail(exitUsage, "Illegal option -%c", flag)
			}
		}
	}
	switch {
	case fromArgs:
		if len(args) == 0 {
			return c.fail(exitUsage, "-c requires an argument")
		}
		text, args = args[0], args[1:]
		name = "sh"
		if len(args) > 0 {
			name, args = args[0], args[1:]
		}
	case len(args) > 0:
		name, args = args[0], args[1:]
		data, err := c.readFile(name)
		if err != nil {
			return c.fail(exitNotFound, "%v", err)
		}
		text = string(data)
	default:
		var b bytes.Buffer
		if _, err := b.ReadFrom(c.in); err != nil {
			return err
		}
		text, name = b.String(), "sh"
	}
	if options != "" {
		text = "set -" + options + "\n" + text
	}
	inner := &userShell{host: c.host, files: c.files, env: c.environment()}
	return exitStatus(inner.run(c.ctx, text, append([]string{name}, args...), c.dir, c.stdio))
}
