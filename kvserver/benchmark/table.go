package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

type direction bool

const (
	higherIsBetter direction = true
	lowerIsBetter  direction = false
)

// row is one quantity with what each server showed in each round.
type row struct {
	name, unit string
	better     direction
	seen       map[string][]float64
}

// table keeps its rows in the order of their first measurement.
type table struct{ rows *[]*row }

func (t table) add(name, unit string, better direction, kind string, value float64) {
	for _, r := range *t.rows {
		if r.name == name {
			r.seen[kind] = append(r.seen[kind], value)
			return
		}
	}
	*t.rows = append(*t.rows, &row{name: name, unit: unit, better: better, seen: map[string][]float64{kind: {value}}})
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2
	}
	return sorted[middle]
}

// print writes a Markdown table. A ratio above 1 is musterd ahead, whichever
// way the quantity counts.
func (t table) print(w io.Writer) error {
	lines := [][]string{{"what", "etcd", "musterd", "unit", "ratio"}, {"---", "---:", "---:", "---", "---:"}}
	for _, r := range *t.rows {
		etcd, musterd := median(r.seen["etcd"]), median(r.seen["musterd"])
		ratio := musterd / etcd
		if r.better == lowerIsBetter {
			ratio = etcd / musterd
		}
		lines = append(lines, []string{r.name, format(etcd), format(musterd), r.unit, fmt.Sprintf("%.2f", ratio)})
	}
	width := 0
	for _, line := range lines {
		width = max(width, len(line[0]))
	}
	for _, line := range lines {
		if _, err := fmt.Fprintf(w, "| %-*s | %9s | %9s | %-4s | %6s |\n", width, line[0], line[1], line[2], line[3], line[4]); err != nil {
			return err
		}
	}
	return nil
}

func format(value float64) string {
	switch {
	case value >= 100:
		return strings.TrimSuffix(fmt.Sprintf("%.0f", value), ".")
	case value >= 1:
		return fmt.Sprintf("%.1f", value)
	}
	return fmt.Sprintf("%.3f", value)
}
