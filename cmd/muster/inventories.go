package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/term"

	"muster/provision/inventory"
)

// stdinName is what problems call an inventory from standard input.
const stdinName = "stdin"

// loadInventory reads the one cluster that --file and --cluster name and
// prints the warnings about it.
func (a *app) loadInventory(opts ...inventory.Option) (*inventory.Cluster, error) {
	clusters, err := a.loadInventories(opts...)
	if err != nil {
		return nil, err
	}
	if len(clusters) > 1 {
		return nil, &usageError{
			err:  fmt.Errorf("this works on one cluster, and the inventory has %d: %s", len(clusters), strings.Join(clusterNames(clusters), ", ")),
			hint: "say which one is meant: --cluster " + clusters[0].Name,
		}
	}
	return clusters[0], nil
}

// loadInventories reads the clusters that --file and --cluster name, at least
// one, and prints the warnings about them.
func (a *app) loadInventories(opts ...inventory.Option) ([]*inventory.Cluster, error) {
	clusters, warnings, err := a.readInventories(opts...)
	for _, w := range warnings {
		fmt.Fprintf(a.err, "warning: %s\n", w)
	}
	return clusters, err
}

func (a *app) readInventories(opts ...inventory.Option) ([]*inventory.Cluster, []inventory.Warning, error) {
	if a.canPrompt() {
		opts = append(opts, inventory.CanPrompt())
	}
	files, err := a.inventoryFiles()
	if err != nil {
		return nil, nil, err
	}
	var all []*inventory.Cluster
	var warnings []inventory.Warning
	var problems inventory.Problems
	for _, name := range files {
		clusters, w, err := a.readInventory(name, opts...)
		var found inventory.Problems
		if err != nil && !errors.As(err, &found) {
			return nil, warnings, err
		}
		all, warnings, problems = append(all, clusters...), append(warnings, w...), append(problems, found...)
	}
	if len(problems) == 0 {
		errors.As(inventory.Together(all), &problems)
	}
	if len(problems) > 0 {
		return nil, warnings, problems
	}
	all, err = a.selectClusters(all)
	return all, warnings, err
}

func (a *app) readInventory(name string, opts ...inventory.Option) ([]*inventory.Cluster, []inventory.Warning, error) {
	source, err := a.openInventory(name)
	if err != nil {
		return nil, nil, err
	}
	defer source.Close()
	if name == standardInput {
		name = stdinName
	}
	clusters, warnings, err := inventory.LoadAll(name, source, opts...)
	var problems inventory.Problems
	if err != nil && !errors.As(err, &problems) {
		err = &usageError{err: err, hint: "name a file with --file, or - for standard input"}
	}
	return clusters, warnings, err
}

// inventoryFiles are the files that --file names, those of a directory in the
// order of their names.
func (a *app) inventoryFiles() ([]string, error) {
	var files []string
	for _, name := range a.files {
		if info, err := os.Stat(name); name == standardInput || err != nil || !info.IsDir() {
			files = append(files, name)
			continue
		}
		found, err := inDirectory(name)
		if err != nil {
			return nil, &usageError{err: fmt.Errorf("read the inventories: %w", err), hint: "name a file, or a directory with files in YAML"}
		}
		files = append(files, found...)
	}
	return files, nil
}

// inDirectory are the inventories in a directory; not those below it.
func inDirectory(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); !e.IsDir() && (ext == ".yaml" || ext == ".yml") {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s has no file that ends in .yaml", dir)
	}
	return files, nil
}

func (a *app) openInventory(name string) (io.ReadCloser, error) {
	if name == standardInput {
		return io.NopCloser(a.in), nil
	}
	f, err := os.Open(name)
	if err == nil {
		return f, nil
	}
	failure := &usageError{err: fmt.Errorf("read the inventory: %w", err)}
	if errors.Is(err, fs.ErrNotExist) {
		failure.hint = fmt.Sprintf("name the inventory with --file, or make one: muster init --file %s root@10.240.0.10", name)
	}
	return nil, failure
}

// selectClusters leaves those that --cluster names.
func (a *app) selectClusters(all []*inventory.Cluster) ([]*inventory.Cluster, error) {
	if len(a.selected) == 0 {
		return all, nil
	}
	for _, name := range a.selected {
		if !slices.Contains(clusterNames(all), name) {
			return nil, &usageError{
				err:  fmt.Errorf("there is no cluster %q in the inventory", name),
				hint: "it has " + strings.Join(clusterNames(all), ", "),
			}
		}
	}
	return slices.DeleteFunc(all, func(c *inventory.Cluster) bool { return !slices.Contains(a.selected, c.Name) }), nil
}

func clusterNames(clusters []*inventory.Cluster) []string {
	names := make([]string, len(clusters))
	for i, c := range clusters {
		names[i] = c.Name
	}
	return names
}

// oneFile is the file that --file names, where there can be one only.
func (a *app) oneFile() (string, error) {
	if len(a.files) > 1 {
		return "", &usageError{fmt.Errorf("--file is given %d times", len(a.files)), "write one inventory at a time"}
	}
	return a.files[0], nil
}

// canPrompt says that there is a person who can be asked for a passphrase.
// Standard input is not free for that when it carries the inventory.
func (a *app) canPrompt() bool {
	f, ok := a.in.(*os.File)
	return ok && !slices.Contains(a.files, standardInput) && term.IsTerminal(int(f.Fd())) //nolint:gosec // a descriptor fits an int
}
