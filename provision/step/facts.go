package step

import (
	"context"
	"strings"

	"muster/provision/observed"
)

// GatherFacts reads what the host is and what it has.
func GatherFacts(ctx context.Context, h *Host) error {
	return h.observe(ctx, true)
}

// LookOnly is GatherFacts without measuring the disk, which would write to it.
func LookOnly(ctx context.Context, h *Host) error {
	return h.observe(ctx, false)
}

func (h *Host) observe(ctx context.Context, probe bool) error {
	facts, err := observed.Gather(ctx, h.Remote, h.Want, probe)
	if err != nil {
		return err
	}
	h.Facts, h.restart = facts, facts.RestartPending
	return nil
}

// goArch is the architecture uname -m names, in Go's words; empty when no
// program can be made for it.
func goArch(machine string) string {
	return map[string]string{"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}[strings.TrimSpace(machine)]
}
