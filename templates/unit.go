package templates

import (
	"fmt"
	"path"
	"strings"
	"text/template"
)

// MusterdUnit is the systemd unit of the server on one host.
type MusterdUnit struct {
	Cluster string // its name, for people
	Binary  string // absolute path of the server
	User    string
	Group   string
	DataDir string // absolute path; the one place the server can write to
	Config  string // absolute path of the directory that it reads
	// Environment is the path of a file that need not be there.
	Environment string
	Args        []Argument
}

// Argument is one flag of the server.
type Argument struct {
	Flag  string // without dashes
	Value string // empty for a switch such as client-cert-auth
	// Joined writes --flag=value, which is the only form a boolean with a
	// value can take. Otherwise a space stands between the two, the form
	// people search a process list for.
	Joined bool
}

// Render returns the text of the unit.
func (u MusterdUnit) Render() ([]byte, error) {
	return render("musterd.service.tmpl", template.FuncMap{"argument": quoteArgument}, u)
}

// StateDirectory is the data directory relative to /var/lib, where systemd
// can keep it for the service, or "" when it is elsewhere.
func (u MusterdUnit) StateDirectory() string {
	rest, ok := strings.CutPrefix(path.Clean(u.DataDir), "/var/lib/")
	if !ok {
		return ""
	}
	return rest
}

// Words returns the argument as the words of a command line.
func (a Argument) Words() []string {
	flag := "--" + a.Flag
	switch {
	case a.Joined:
		return []string{flag + "=" + a.Value}
	case a.Value == "":
		return []string{flag}
	}
	return []string{flag, a.Value}
}

// plainCharacters need no quoting in a command line of systemd.
const plainCharacters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=:/.,@[]+"

// quoteArgument writes an argument so that systemd reads the same words back:
// systemd.service(5) expands % and $ and splits at blanks, also in quotes of
// either kind. It refuses what a unit cannot hold.
func quoteArgument(a Argument) (string, error) {
	words := a.Words()
	for i, w := range words {
		if strings.ContainsFunc(w, func(r rune) bool { return r < ' ' || r > '~' }) {
			return "", fmt.Errorf("the flag %s holds a character that is not printable ASCII", a.Flag)
		}
		if w != "" && strings.Trim(w, plainCharacters) == "" {
			continue
		}
		w = strings.NewReplacer(`\`, `\\`, `"`, `\"`, `%`, `%%`, `$`, `$$`).Replace(w)
		words[i] = `"` + w + `"`
	}
	return strings.Join(words, " "), nil
}
