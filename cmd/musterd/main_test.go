package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Tools look for this line in etcd's own form.
func TestVersion(t *testing.T) {
	var out bytes.Buffer
	if err := run(context.Background(), []string{"--version"}, nil, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^etcd Version: 3\.7\.\d+\nGit SHA: .+\nGo Version: go.+\nGo OS/Arch: \w+/\w+\nmusterd Version: .+\n$`).MatchString(out.String()) {
		t.Errorf("--version prints\n%s", out.String())
	}
}

func TestExitCodes(t *testing.T) {
	err := run(context.Background(), []string{"--nmae"}, nil, io.Discard, io.Discard)
	if exitCode(err) != 2 {
		t.Errorf("a mistake on the command line exits with %d (%v)", exitCode(err), err)
	}
	log := filepath.Join(t.TempDir(), "log")
	err = run(context.Background(), []string{"--data-dir", t.TempDir(), "--name=", "--log-outputs", log}, nil, io.Discard, io.Discard)
	if text, readErr := os.ReadFile(log); readErr != nil || !strings.Contains(string(text), "--name is empty") {
		t.Errorf("the log file has %s (%v)", text, readErr)
	}
	if err == nil || exitCode(err) != 1 {
		t.Errorf("a member that cannot start exits with %d (%v)", exitCode(err), err)
	}
	if !errors.As(usageError{io.EOF}, &usageError{}) || !errors.Is(usageError{io.EOF}, io.EOF) {
		t.Error("a usage error hides its cause")
	}
}
