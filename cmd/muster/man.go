package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func newManCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "man DIR",
		Short: "write the manual pages",
		Long: `man writes a page of section 1 for every command into a directory, which is made
if it does not exist: muster.1, muster-apply.1 and so on.`,
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE:   func(cmd *cobra.Command, args []string) error { return a.man(cmd.Root(), args[0]) },
	}
}

func (a *app) man(root *cobra.Command, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // manuals are no secret
		return fmt.Errorf("make a directory for the pages: %w", err)
	}
	header := &doc.GenManHeader{Section: "1", Source: "muster", Manual: "muster", Date: sourceTime()}
	root.DisableAutoGenTag = true
	if err := doc.GenManTree(root, header, dir); err != nil {
		return fmt.Errorf("write the pages: %w", err)
	}
	pages, err := filepath.Glob(filepath.Join(dir, "muster*.1"))
	if err != nil {
		return err
	}
	fmt.Fprintf(a.out, "%s: %s\n", dir, count(len(pages), "page"))
	return nil
}

// sourceTime is when the program's source was committed, so that the same
// program writes the same pages; nil, which is now, when it does not know.
func sourceTime() *time.Time {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return nil
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.time" {
			if t, err := time.Parse(time.RFC3339, s.Value); err == nil {
				return &t
			}
		}
	}
	return nil
}
