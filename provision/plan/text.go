package plan

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/text"
)

// symbols begin the lines of a plan.
var symbols = map[Action]struct {
	sign  string
	color text.Color
}{
	Create: {"+", text.FgGreen}, Add: {"+", text.FgGreen}, Start: {"+", text.FgGreen},
	Update: {"~", text.FgYellow}, Restart: {"~", text.FgYellow}, Promote: {"~", text.FgYellow},
	Remove: {"-", text.FgRed}, Note: {"!", text.FgCyan},
}

// WriteText writes the plan for people. Hosts that change in the same way
// share one list.
func (p *Plan) WriteText(w io.Writer, colors bool) error {
	var b strings.Builder
	p.section(&b, "workstation", colors, func(c Change) bool { return c.Host == "" && c.Kind != Member })
	var lists []string
	sharers := map[string][]string{}
	for _, host := range p.Hosts {
		var list strings.Builder
		for _, c := range p.Of(host) {
			c.write(&list, colors)
		}
		if list.Len() == 0 {
			continue
		}
		if sharers[list.String()] == nil {
			lists = append(lists, list.String())
		}
		sharers[list.String()] = append(sharers[list.String()], host)
	}
	for _, list := range lists {
		fmt.Fprintf(&b, "%s\n%s", strings.Join(sharers[list], ", "), list)
	}
	p.section(&b, "members", colors, func(c Change) bool { return c.Kind == Member })
	_, err := io.WriteString(w, b.String())
	return err
}

func (p *Plan) section(b *strings.Builder, title string, colors bool, of func(Change) bool) {
	if !slices.ContainsFunc(p.Changes, of) {
		return
	}
	fmt.Fprintln(b, title)
	for _, c := range p.Changes {
		if of(c) {
			c.write(b, colors)
		}
	}
}

func (c Change) write(b *strings.Builder, colors bool) {
	s := symbols[c.Action]
	begin, end := "", ""
	if colors {
		begin, end = s.color.EscapeSeq(), text.Reset.EscapeSeq()
	}
	fmt.Fprintf(b, "  %s%s %-8s%s %-12s %s\n", begin, s.sign, c.Action, end, c.Kind, c.Name)
	for _, d := range c.Details {
		fmt.Fprintf(b, "      %s\n", d)
	}
}

// Summary counts the changes in one line.
func (p *Plan) Summary() string {
	if p.Empty() {
		return "nothing to do"
	}
	hosts, restarts := map[string]bool{}, 0
	for _, c := range p.Changes {
		if c.Host != "" && c.Action != Note {
			hosts[c.Host] = true
		}
		if c.Action == Restart {
			restarts++
		}
	}
	summary := fmt.Sprintf("%s on %s", count(p.Len(), "change"), count(len(hosts), "host"))
	if restarts > 0 {
		summary += ", " + count(restarts, "restart")
	}
	return summary
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (c Change) sentence() string {
	text := fmt.Sprintf("%s %s %s", c.Action, c.Kind, c.Name)
	if len(c.Details) > 0 {
		text += " (" + strings.Join(c.Details, "; ") + ")"
	}
	return text
}
