package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"regexp"
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
	err = run(context.Background(), []string{"--data-dir", t.TempDir(), "--initial-cluster-state=existing"}, nil, io.Discard, io.Discard)
	if err == nil || exitCode(err) != 1 {
		t.Errorf("a member that cannot start exits with %d (%v)", exitCode(err), err)
	}
	if !errors.As(usageError{io.EOF}, &usageError{}) || !errors.Is(usageError{io.EOF}, io.EOF) {
		t.Error("a usage error hides its cause")
	}
}
