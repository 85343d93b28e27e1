package step

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"muster/pki"
	"muster/provision/member"
	"muster/provision/remote"
)

// Served is what one endpoint of a member shows.
type Served struct {
	Endpoint string
	Role     pki.Role
	member.Handshake
	Err error // there was no handshake
}

// LookAtServed makes a handshake with every endpoint of the host's member, in
// the order of their URLs.
func LookAtServed(ctx context.Context, h *Host, client pki.Pair) []Served {
	var all []Served
	for _, e := range endpoints(h) {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		shown, err := member.Shake(call, e.url, client, h.Remote.DialContext)
		cancel()
		all = append(all, Served{Endpoint: e.url, Role: e.role, Handshake: shown, Err: err})
	}
	return all
}

// readScript prints the files that exist, each between two lines of its own.
const readScript = `for path in "$@"; do
	if [ -f "$path" ]; then
		printf 'file|%s\n' "$path"
		cat "$path"
		printf '\nend|%s\n' "$path"
	fi
done
`

// ReadCertificates reads the certificates and keys that the host has of those
// it should have, by the last element of their paths.
func ReadCertificates(ctx context.Context, h *Host) (map[string][]byte, error) {
	var paths []string
	for _, f := range h.Want.Files {
		if isCertificateFile(f.Path) {
			paths = append(paths, f.Path)
		}
	}
	files, err := readSecret(ctx, h, "read the certificates", paths)
	if err != nil {
		return nil, err
	}
	byName := map[string][]byte{}
	for name, text := range files {
		byName[path.Base(name)] = text
	}
	return byName, nil
}

// readSecret reads those of some files that exist, by path. What they hold
// reaches no message.
func readSecret(ctx context.Context, h *Host, label string, paths []string) (map[string][]byte, error) {
	if p := h.Remote.Privilege(); p.Problem != "" {
		return nil, fmt.Errorf("%s: %s cannot become root without a password (%s), and only root can read the keys", h.Name, p.User, p.Problem)
	}
	result, err := h.Remote.Run(ctx, remote.Command{Label: label, Script: readScript, Args: paths})
	if err != nil {
		// What was read before it failed is secret: only the cause is passed on.
		var failed *remote.CommandError
		if errors.As(err, &failed) && failed.Err == nil {
			return nil, fmt.Errorf("%s: %s: exit status %d", h.Name, label, failed.ExitStatus)
		}
		if failed != nil {
			err = failed.Err
		}
		return nil, fmt.Errorf("%s: %s: %w", h.Name, label, err)
	}
	files := map[string][]byte{}
	rest := result.Stdout
	for {
		_, after, found := strings.Cut(rest, "file|")
		if !found {
			return files, nil
		}
		name, after, _ := strings.Cut(after, "\n")
		text, after, found := strings.Cut(after, "\nend|"+name+"\n")
		if !found {
			return nil, fmt.Errorf("%s: %s: the answer is cut short", h.Name, label)
		}
		files[name], rest = []byte(text), after
	}
}

func isCertificateFile(name string) bool {
	return path.Ext(name) == ".crt" || path.Ext(name) == ".key"
}
