package practice

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// accounts are the users and groups of a host: its /etc/passwd and
// /etc/group, read anew each time since tools change them.
type accounts struct{ root string }

// account is one line of /etc/passwd or, without Home and Shell, /etc/group.
type account struct {
	Name    string
	ID      int
	GID     int // of a user: the primary group
	Comment string
	Home    string
	Shell   string
	Members []string // of a group
}

func (a accounts) file(name string) string { return filepath.Join(a.root, "etc", name) }

func (a accounts) lines(name string) ([][]string, error) {
	f, err := os.Open(a.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var lines [][]string
	s := bufio.NewScanner(f)
	for s.Scan() {
		lines = append(lines, strings.Split(s.Text(), ":"))
	}
	return lines, s.Err()
}

// user finds a user by name or by number.
func (a accounts) user(key string) (account, bool) {
	lines, err := a.lines("passwd")
	if err != nil {
		return account{}, false
	}
	for _, l := range lines {
		if len(l) < 7 || (l[0] != key && l[2] != key) {
			continue
		}
		id, err := strconv.Atoi(l[2])
		if err != nil {
			continue
		}
		gid, err := strconv.Atoi(l[3])
		if err != nil {
			continue
		}
		return account{Name: l[0], ID: id, GID: gid, Comment: l[4], Home: l[5], Shell: l[6]}, true
	}
	return account{}, false
}

// group finds a group by name or by number.
func (a accounts) group(key string) (account, bool) {
	lines, err := a.lines("group")
	if err != nil {
		return account{}, false
	}
	for _, l := range lines {
		if len(l) < 4 || (l[0] != key && l[2] != key) {
			continue
		}
		id, err := strconv.Atoi(l[2])
		if err != nil {
			continue
		}
		g := account{Name: l[0], ID: id}
		if l[3] != "" {
			g.Members = strings.Split(l[3], ",")
		}
		return g, true
	}
	return account{}, false
}

func (a accounts) groupName(gid int) string {
	g, ok := a.group(strconv.Itoa(gid))
	if !ok {
		return strconv.Itoa(gid)
	}
	return g.Name
}

// groupsOf returns the user's groups, the primary one first.
func (a accounts) groupsOf(user string) []string {
	u, ok := a.user(user)
	if !ok {
		return []string{user}
	}
	groups := []string{a.groupName(u.GID)}
	lines, err := a.lines("group")
	if err != nil {
		return groups
	}
	for _, l := range lines {
		if len(l) >= 4 && slices.Contains(strings.Split(l[3], ","), u.Name) {
			groups = append(groups, l[0])
		}
	}
	return groups
}

// homeOf is the user's home directory, / when there is none.
func (a accounts) homeOf(user string) string {
	if u, ok := a.user(user); ok {
		return u.Home
	}
	return "/"
}

// nextID is the highest system number that no account has.
func (a accounts) nextID() int {
	for id := 999; ; id-- {
		key := strconv.Itoa(id)
		_, isUser := a.user(key)
		_, isGroup := a.group(key)
		if !isUser && !isGroup {
			return id
		}
	}
}

var errAccountExists = errors.New("already exists")

// addGroup makes a group; id 0 picks a number.
func (a accounts) addGroup(name string, id int) (int, error) {
	if _, ok := a.group(name); ok {
		return 0, fmt.Errorf("group '%s' %w", name, errAccountExists)
	}
	if id == 0 {
		id = a.nextID()
	}
	return id, a.append("group", fmt.Sprintf("%s:x:%d:\n", name, id))
}

// addUser makes a user whose primary group is gid; id 0 picks a number.
func (a accounts) addUser(u account) error {
	if _, ok := a.user(u.Name); ok {
		return fmt.Errorf("user '%s' %w", u.Name, errAccountExists)
	}
	if u.ID == 0 {
		u.ID = a.nextID()
	}
	return a.append("passwd", fmt.Sprintf("%s:x:%d:%d:%s:%s:%s\n", u.Name, u.ID, u.GID, u.Comment, u.Home, u.Shell))
}

// drop removes the line of an account from passwd or group.
func (a accounts) drop(file, name string) error {
	data, err := os.ReadFile(a.file(file))
	if err != nil {
		return err
	}
	var kept strings.Builder
	for line := range strings.Lines(string(data)) {
		if !strings.HasPrefix(line, name+":") {
			kept.WriteString(line)
		}
	}
	return os.WriteFile(a.file(file), []byte(kept.String()), 0o644)
}

func (a accounts) append(file, line string) error {
	f, err := os.OpenFile(a.file(file), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line)
	return errors.Join(err, f.Close())
}
