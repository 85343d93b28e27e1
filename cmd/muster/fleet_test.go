package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"gopkg.in/yaml.v3"

	"muster/provision/inventory"
	"muster/provision/practice"
	"muster/provision/step"
)

var (
	fleetHosts       = flag.String("hosts", "4", "how many practice hosts TestFleet applies in one run; several numbers, with commas between, are so many fleets one after the other")
	fleetInventories = flag.String("inventories", "2", "in how many inventories they are, for each of -hosts")
	fleetParks       = flag.Bool("park", false, "stop the members of a cluster (SIGSTOP) when it is verified, and measure the first apply only: for more members than there are processors to run them")
	fleetRound       = flag.Int("at-once", 0, "muster's --concurrency for TestFleet; its default when 0")
)

// TestFleet applies, applies again and asks for the status of fleets of practice
// hosts, with a muster in a process of its own and members that run. It prints
// what that took, so that one can see whether anything grows faster than the
// number of hosts.
func TestFleet(t *testing.T) {
	hosts, inventories := numbers(t, *fleetHosts), numbers(t, *fleetInventories)
	if len(hosts) != len(inventories) {
		t.Fatalf("-hosts %s and -inventories %s are not as many numbers", *fleetHosts, *fleetInventories)
	}
	w := newWorkstation(t)
	var report fleetReport
	for i := range hosts {
		t.Run(fmt.Sprintf("%d in %d", hosts[i], inventories[i]), func(t *testing.T) {
			file := startFleet(t, hosts[i], inventories[i])
			first := w.measure(t, file, inventories[i], "apply", "--yes", "--binary-dir", w.programs)
			if *fleetParks {
				report.add(hosts[i], inventories[i], first, measured{}, measured{})
				return
			}
			again := w.measure(t, file, inventories[i], "apply", "--yes", "--binary-dir", w.programs)
			if again.changes != 0 || first.changes == 0 {
				t.Errorf("%d changes, then %d", first.changes, again.changes)
			}
			status := w.measure(t, file, 0, "status")
			report.add(hosts[i], inventories[i], first, again, status)
		})
	}
	t.Logf("\n%s", &report)
}

func numbers(t *testing.T, list string) []int {
	t.Helper()
	var all []int
	for _, text := range strings.Split(list, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("%q is not a list of numbers", list)
		}
		all = append(all, n)
	}
	return all
}

// A few members run with etcd's defaults. Hundreds that share two processors
// cannot: their heartbeats alone would be the load of seven.
func flagsOf(hosts int) map[string]string {
	const few = 20
	switch {
	case hosts <= few:
		return nil
	case *fleetParks:
		return map[string]string{"heartbeat-interval": "500", "election-timeout": "5000"}
	}
	return map[string]string{"heartbeat-interval": "2000", "election-timeout": "20000"}
}

// startFleet starts practice hosts and writes all inventories into one file.
func startFleet(t *testing.T, hosts, inventories int) string {
	t.Helper()
	dir := t.TempDir()
	var all bytes.Buffer
	enc := yaml.NewEncoder(&all)
	for i := range inventories {
		name := fmt.Sprintf("fleet-%d", i)
		here := filepath.Join(dir, name)
		n := hosts*(i+1)/inventories - hosts*i/inventories
		c, err := practice.StartCluster(practice.ClusterOptions{Dir: here, Hosts: n, Name: name})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := signalMembers(here, syscall.SIGKILL); err != nil { // who is stopped would not end otherwise
				t.Error(err)
			}
			if err := errors.Join(c.Close(), os.RemoveAll(here)); err != nil {
				t.Error(err)
			}
		})
		text, err := os.ReadFile(c.Inventory)
		if err != nil {
			t.Fatal(err)
		}
		var doc inventory.Cluster
		if err := yaml.Unmarshal(text, &doc); err != nil {
			t.Fatal(err)
		}
		doc.SSH.IdentityFile = filepath.Join(here, "id_ed25519")
		doc.Server.Flags = flagsOf(hosts)
		if err := enc.Encode(doc); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "fleet.yaml")
	if err := errors.Join(enc.Close(), os.WriteFile(file, all.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	return file
}

// measured is what one run of muster took.
type measured struct {
	changes  int
	wall     time.Duration
	cpu      time.Duration
	resident int64 // at most, in bytes
	// steps is how long hosts and clusters were in each step, in all.
	steps map[string]time.Duration
	order []string // of the steps
}

// measure runs muster on all clusters, of which so many end with a result.
func (w *workstation) measure(t *testing.T, file string, results int, args ...string) measured {
	t.Helper()
	if args[0] == "apply" {
		args = append(args, "--timeout", "10m") // the first election alone waits for the election timeout
	}
	if *fleetRound > 0 && args[0] == "apply" {
		args = append(args, "--concurrency", strconv.Itoa(*fleetRound))
	}
	cmd := w.command(append(args, "-o", "json", "-f", file)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &keeper{out: &out, dir: filepath.Dir(file), kept: map[string]string{}}, &errs
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	resident := watchMemory(cmd.Process.Pid)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("muster %s: %v\n%s\n%s", strings.Join(args, " "), err, &errs, lastBytes(out.Bytes(), 4000))
	}
	m := measured{wall: time.Since(begun), cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), resident: resident()}
	if results == 0 {
		return m
	}
	m.steps = map[string]time.Duration{}
	began := map[[3]string]time.Time{}
	verified := 0
	for line := range bytes.Lines(out.Bytes()) {
		var e struct {
			jsonEvent
			Changes int `json:"changes"`
		}
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		at := [3]string{e.Cluster, e.Host, e.Step}
		switch e.Kind {
		case step.Started:
			began[at] = e.Time
		case step.Done:
			if m.steps[e.Step] == 0 {
				m.order = append(m.order, e.Step)
			}
			m.steps[e.Step] += e.Time.Sub(began[at])
		case "result":
			verified++
		case "fleet":
			m.changes = e.Changes
		}
	}
	if verified != results {
		t.Errorf("%d of %d clusters are verified", verified, results)
	}
	return m
}

// keeper has the hosts keep equal programs once, as soon as muster says that
// one is installed: hundreds of copies would fill the disk, and as many times
// the memory. It passes on what muster says.
type keeper struct {
	out  *bytes.Buffer
	dir  string
	kept map[string]string // a file, by the name of the program
	rest []byte
}

// Write implements io.Writer. It gets pieces of lines.
func (k *keeper) Write(p []byte) (int, error) {
	k.rest = append(k.rest, p...)
	for {
		line, rest, whole := bytes.Cut(k.rest, []byte("\n"))
		if !whole {
			return k.out.Write(p)
		}
		k.rest = rest
		var e struct {
			jsonEvent
			Status struct{ Cluster string }
		}
		if json.Unmarshal(line, &e) != nil {
			continue // measure complains of lines that are not JSON
		}
		if e.Kind == "result" && *fleetParks {
			if err := signalMembers(filepath.Join(k.dir, e.Status.Cluster), syscall.SIGSTOP); err != nil {
				return 0, err
			}
		}
		if e.Kind != step.Changed {
			continue
		}
		if program, ok := strings.CutPrefix(e.Text, "installed /usr/local/bin/"); ok {
			program, _, _ = strings.Cut(program, " ")
			file := filepath.Join(k.dir, e.Cluster, e.Host, "root/usr/local/bin", program)
			if err := k.keep(program, file); err != nil {
				return 0, err
			}
		}
	}
}

func (k *keeper) keep(program, file string) error {
	if k.kept[program] == "" {
		k.kept[program] = file
		return nil
	}
	next := file + ".kept"
	return errors.Join(os.Link(k.kept[program], next), os.Rename(next, file))
}

// signalMembers sends a signal to the members whose data is below a directory.
func signalMembers(dir string, signal syscall.Signal) error {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, line := range lines {
		text, err := os.ReadFile(line)
		if err != nil || !bytes.Contains(text, []byte(dir+"/")) || !bytes.Contains(text, []byte("musterd")) {
			continue // gone, or another one
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(line)))
		if err != nil {
			return err
		}
		if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return nil
}

// watchMemory follows the most memory that a process had resident, which the
// returned function tells in bytes. What getrusage says of a child counts the
// parent's memory too.
func watchMemory(pid int) (resident func() int64) {
	var most atomic.Int64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) // gone when the process is
			if _, rest, found := strings.Cut(string(text), "\nVmHWM:"); found {
				if kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64); err == nil {
					most.Store(kib << 10)
				}
			}
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	return func() int64 {
		close(stop)
		<-stopped
		return most.Load()
	}
}

func lastBytes(text []byte, n int) []byte { return text[max(0, len(text)-n):] }

// fleetReport is a column for each fleet.
type fleetReport struct {
	head []string
	rows []fleetRow
}

type fleetRow struct {
	name  string
	cells []string
}

func (r *fleetReport) add(hosts, inventories int, first, again, status measured) {
	r.head = append(r.head, fmt.Sprintf("%d in %d", hosts, inventories))
	cell := func(name, text string) {
		i := slices.IndexFunc(r.rows, func(row fleetRow) bool { return row.name == name })
		if i < 0 {
			i = len(r.rows)
			r.rows = append(r.rows, fleetRow{name: name})
		}
		r.rows[i].cells = append(r.rows[i].cells, text)
	}
	for _, run := range []struct {
		name string
		measured
	}{{"first apply", first}, {"second apply", again}, {"status", status}} {
		if run.wall == 0 { // not measured
			continue
		}
		cell(run.name+", s", fmt.Sprintf("%.1f", run.wall.Seconds()))
		cell(run.name+", ms a host", perHost(run.wall, hosts))
		cell(run.name+", muster's CPU, ms a host", perHost(run.cpu, hosts))
		cell(run.name+", muster's memory, MiB", strconv.FormatInt(run.resident>>20, 10))
	}
	for _, name := range first.order {
		cell("first apply: "+name+", ms a host", perHost(first.steps[name], hosts))
	}
	for _, name := range []string{"connect", "facts", "verify"} {
		if again.wall == 0 {
			continue
		}
		cell("second apply: "+name+", ms a host", perHost(again.steps[name], hosts))
	}
}

func perHost(d time.Duration, hosts int) string {
	return fmt.Sprintf("%.1f", float64(d.Microseconds())/1000/float64(hosts))
}

func (r *fleetReport) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 1, ' ', tabwriter.AlignRight|tabwriter.Debug)
	fmt.Fprintf(w, " hosts in inventories\t %s\t\n", strings.Join(r.head, "\t "))
	for _, row := range r.rows {
		fmt.Fprintf(w, " %s\t %s\t\n", row.name, strings.Join(row.cells, "\t "))
	}
	_ = w.Flush()
	return b.String()
}
