package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestShell(t *testing.T) {
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("echo \"$#: $1\"\nexit 4\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name       string
		args       []string
		in         string
		out, diags string
		status     int
	}{
		{name: "commands", args: []string{"-c", `A=3 env | grep ^A=; echo "$0 $1"`, "name", "first"}, out: "A=3\nname first\n"},
		{name: "options", args: []string{"-ec", "false; echo unreached"}, status: 1},
		{name: "no options", args: []string{"-c", "false; echo reached"}, out: "reached\n"},
		{name: "unset", args: []string{"-uc", "echo $nothing"}, diags: "nothing: unbound variable\n", status: 1},
		{name: "status", args: []string{"-c", "exit 7"}, status: 7},
		{name: "unknown program", args: []string{"-c", "nosuchprogram"}, diags: "\"nosuchprogram\": executable file not found in $PATH\n", status: 127},
		{name: "pipe and redirection", args: []string{"-c", `for i in b a; do echo $i; done | sort; echo gone >/dev/null`}, out: "a\nb\n"},
		{name: "script", args: []string{script, "x", "y"}, out: "2: x\n", status: 4},
		{name: "standard input", in: "echo from input\n", out: "from input\n"},
		{name: "no script", args: []string{"/nosuch"}, diags: "sh: open /nosuch: no such file or directory\n", status: 127},
		{name: "no commands", args: []string{"-c"}, diags: "sh: -c wants the commands as an argument\n", status: 2},
		{name: "bad syntax", args: []string{"-c", "if"}, diags: "sh: sh:1:1: `if` must be followed by a statement list\n", status: 2},
		{name: "prompt", args: []string{"-i"}, in: "echo one\nif true\nthen echo two; fi\nexit 5\n", out: "# one\n# two\n# ", status: 5},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in, err := os.Create(filepath.Join(t.TempDir(), "in"))
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			if _, err := in.WriteString(tc.in); err != nil {
				t.Fatal(err)
			}
			if _, err := in.Seek(0, 0); err != nil {
				t.Fatal(err)
			}
			var out, diags bytes.Buffer
			if status := runShell(t.Context(), tc.args, in, &out, &diags); status != tc.status {
				t.Errorf("exit status %d, want %d", status, tc.status)
			}
			if out.String() != tc.out || diags.String() != tc.diags {
				t.Errorf("prints %q and %q, want %q and %q", out.String(), diags.String(), tc.out, tc.diags)
			}
		})
	}
}
