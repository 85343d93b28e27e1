package practice

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// journalctlTool is journalctl -u UNIT... [-n N] [-o FORMAT] [--since @SECONDS]
// [--after-cursor CURSOR]. A cursor is the number of a line.
func journalctlTool(c *call) error {
	f := c.flags()
	units := f.StringArrayP("unit", "u", nil, "")
	count := f.StringP("lines", "n", "all", "")
	output := f.StringP("output", "o", "short-iso-precise", "")
	since := f.StringP("since", "S", "", "")
	after := f.Int("after-cursor", 0, "")
	f.Bool("no-pager", false, "")
	quiet := f.BoolP("quiet", "q", false, "")
	f.String("no-hostname", "", "")
	f.Lookup("no-hostname").NoOptDefVal = "yes"
	if err := c.parse(f); err != nil {
		return err
	}
	p := journalPrinter{call: c, format: *output, quiet: *quiet, after: *after}
	n := -1
	if *count != "all" {
		var err error
		if n, err = strconv.Atoi(*count); err != nil {
			return c.fail(1, "Failed to parse lines '%s'", *count)
		}
	}
	if *since != "" {
		seconds, err := strconv.ParseInt(strings.TrimPrefix(*since, "@"), 10, 64)
		if err != nil {
			return c.fail(1, "practice host: only --since @SECONDS is known")
		}
		p.since = time.Unix(seconds, 0)
	}
	for _, name := range *units {
		if err := p.print(unitName(name), n); err != nil {
			return err
		}
	}
	return nil
}

// journalPrinter prints lines of a journal in one of journalctl's formats.
type journalPrinter struct {
	*call
	format string
	since  time.Time
	quiet  bool
	after  int
}

func (p *journalPrinter) print(name string, n int) error {
	lines, err := p.host.units.journals.of(name).tail(-1, false)
	if err != nil {
		return err
	}
	var wanted []string
	var numbers []int
	for i, l := range lines {
		if t, _, _, _, err := splitEntry(l); !p.since.IsZero() && (err != nil || t.Before(p.since)) {
			continue
		}
		if i >= p.after {
			wanted, numbers = append(wanted, l), append(numbers, i+1)
		}
	}
	first := 0
	if n >= 0 && len(wanted) > n {
		first = len(wanted) - n
	}
	if len(wanted) == 0 && !p.quiet {
		fmt.Fprintln(p.err, "-- No entries --")
	}
	for i := first; i < len(wanted); i++ {
		if err := p.line(name, numbers[i], wanted[i]); err != nil {
			return err
		}
	}
	return nil
}

func (p *journalPrinter) line(unit string, number int, l string) error {
	t, program, pid, message, err := splitEntry(l)
	switch {
	case err != nil || p.format == "short-iso-precise":
		_, err = fmt.Fprintln(p.out, l)
		return err
	case p.format == "cat":
		_, err = fmt.Fprintln(p.out, message)
		return err
	case p.format == "json":
		return json.NewEncoder(p.out).Encode(map[string]string{
			"__CURSOR": strconv.Itoa(number), "__REALTIME_TIMESTAMP": strconv.FormatInt(t.UnixMicro(), 10), "_SYSTEMD_UNIT": unit, "_HOSTNAME": p.host.name,
			"SYSLOG_IDENTIFIER": program, "_PID": pid, "MESSAGE": message,
		})
	}
	return p.fail(1, "practice host: the format %s is not known", p.format)
}

// splitEntry takes a line of a journal apart.
func splitEntry(l string) (t time.Time, program, pid, message string, err error) {
	stamp, rest, ok := strings.Cut(l, " ")
	head, message, ok2 := strings.Cut(rest, "]: ")
	program, pid, ok3 := strings.Cut(head, "[")
	if !ok || !ok2 || !ok3 {
		return t, "", "", "", errors.New("not an entry")
	}
	t, err = time.Parse(journalTime, stamp)
	return t, program, pid, message, err
}
