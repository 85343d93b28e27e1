package practice

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// unitDir is where units are installed and enabled.
const unitDir = "/etc/systemd/system"

// errNoUnit is returned for a unit whose file does not exist.
var errNoUnit = errors.New("not found")

// unitFiles are the unit files of a host and the links that enable them.
type unitFiles struct{ files *view }

func (f unitFiles) read(name string) ([]byte, error) {
	for _, dir := range []string{unitDir, "/run/systemd/system", "/usr/lib/systemd/system"} {
		p, err := f.files.real(path.Join(dir, name))
		if err != nil {
			return nil, err
		}
		data, err := os.ReadFile(p)
		if !errors.Is(err, fs.ErrNotExist) {
			return data, err
		}
	}
	return nil, fmt.Errorf("unit %s %w", name, errNoUnit)
}

// enabled lists the units to start at boot.
func (f unitFiles) enabled() ([]string, error) {
	p, err := f.files.real(unitDir)
	if err != nil {
		return nil, err
	}
	var links []string
	for _, pattern := range []string{"*.service", "*.timer"} {
		found, err := filepath.Glob(filepath.Join(p, "*.wants", pattern))
		if err != nil {
			return nil, err
		}
		links = append(links, found...)
	}
	names := make([]string, 0, len(links))
	for _, l := range links {
		names = append(names, filepath.Base(l))
	}
	return names, nil
}

// isEnabled reports whether the unit starts at boot.
func (f unitFiles) isEnabled(name string) bool {
	names, err := f.enabled()
	return err == nil && slices.Contains(names, name)
}

// enable makes the links that start the unit at boot and returns them.
func (f unitFiles) enable(name string) (made []string, err error) {
	data, err := f.read(name)
	if err != nil {
		return nil, err
	}
	def, err := parseUnit(name, data)
	if err != nil {
		return nil, err
	}
	for _, target := range def.WantedBy {
		link := path.Join(unitDir, target+".wants", name)
		if _, err := f.files.readlink(link); err == nil {
			continue
		}
		if _, err := f.files.mkdirAll(path.Dir(link), 0o755); err != nil {
			return made, err
		}
		if err := f.files.symlink(path.Join(unitDir, name), link); err != nil {
			return made, err
		}
		made = append(made, link)
	}
	return made, nil
}

// disable removes the links, whatever target they are in, and returns them.
func (f unitFiles) disable(name string) (removed []string, err error) {
	dirs, err := f.files.readDir(unitDir)
	if err != nil {
		return nil, err
	}
	for _, d := range dirs {
		if !strings.HasSuffix(d.Name(), ".wants") {
			continue
		}
		link := path.Join(unitDir, d.Name(), name)
		switch err := f.files.remove(link, false); {
		case err == nil:
			removed = append(removed, link)
		case !errors.Is(err, fs.ErrNotExist):
			return removed, err
		}
	}
	return removed, nil
}
