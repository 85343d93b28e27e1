package provision

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"muster/provision/desired"
	"muster/provision/inventory"
	"muster/provision/journal"
	"muster/provision/remote"
	"muster/provision/step"
)

// LogOptions say which part of the journals is wanted.
type LogOptions struct {
	// Since is when it begins; zero for no limit.
	Since time.Time
	// Lines is how many entries of each host are wanted at most, the last
	// ones; negative for all.
	Lines int
	// Follow goes on with what comes, until the context ends.
	Follow bool
}

// followHold is how long an entry is held back while others are followed, so
// that what happened before on another host can come first.
const followHold = 2 * followPoll

// Logs hands on what the members of the hosts have logged, in the order of time.
// A host that cannot be reached does not keep the others from being read; the
// error then names it.
func Logs(ctx context.Context, cluster *inventory.Cluster, o Options, logs LogOptions, emit func(journal.Entry) error) error {
	o = o.withDefaults()
	r, err := begin("logs", cluster, o)
	if err != nil {
		return err
	}
	defer finish(r)
	unreachable := reach(ctx, r)
	if err := someReached(r, unreachable); err != nil {
		return diagnose(ctx, r, err)
	}
	reading, stop := context.WithCancel(ctx)
	defer stop()
	var readers sync.WaitGroup
	errs := make([]error, len(r.Hosts))
	sources := make([]chan journal.Entry, len(r.Hosts))
	for i, h := range r.Hosts {
		sources[i] = make(chan journal.Entry, 64)
		readers.Go(func() {
			defer close(sources[i])
			if h.Remote == nil {
				return
			}
			errs[i] = readJournal(reading, h, logs, func(e journal.Entry) error {
				select {
				case sources[i] <- e:
					return nil
				case <-reading.Done():
					return context.Cause(reading)
				}
			})
		})
	}
	if logs.Follow {
		err = journal.Follow(ctx, together(reading, sources), followHold, emit)
	} else {
		err = journal.Merge(ctx, receivers(sources), emit)
	}
	stop()
	readers.Wait()
	if err != nil || ctx.Err() != nil {
		return err
	}
	return errors.Join(append(unreachable, errs...)...)
}

// journalScript looks into the journal once for every line of standard input:
// behind the cursor that the line holds, or, when it is empty, as far back as
// is wanted. An empty line ends each answer. Nothing is left on the host when
// the connection ends, as "journalctl -f" would be until the next entry.
const journalScript = `while read -r cursor; do
	if [ -n "$cursor" ]; then
		journalctl --after-cursor "$cursor" -u "$2" -o json --no-pager -q 2>&1
	else
		journalctl "$@" 2>&1
	fi
	echo
done`

func journalCommand(h *step.Host, logs LogOptions) remote.Command {
	args := []string{"-u", h.Want.Units[0].Name, "-o", "json", "--no-pager", "-q"}
	if logs.Lines >= 0 {
		args = append(args, "-n", fmt.Sprint(logs.Lines))
	}
	if !logs.Since.IsZero() {
		args = append(args, "--since", fmt.Sprintf("@%d", logs.Since.Unix()))
	}
	return remote.Command{Label: "read the journal", Script: journalScript, Args: args}
}

// containerScript is journalScript for the files in which the kubelet keeps what
// the pod prints. A cursor is the name of a file and a number of lines. $1 is how
// many lines are wanted at first.
const containerScript = `numbered() {
	number=$2
	tail -n +$((number + 1)) "$1" 2>/dev/null | while read -r line; do
		number=$((number + 1))
		printf '%s %s %s\n' "$1" "$number" "$line"
	done
}
behind() {
	wanted=$1 from=$2
	for file in $(ls -1tr ` + desired.PodLogs + `/*.log 2>/dev/null); do
		if [ "$file" = "$wanted" ]; then
			numbered "$file" "$from"
			wanted=
		elif [ -z "$wanted" ]; then
			numbered "$file" 0
		fi
	done
}
while read -r file lines; do
	if [ -n "$file" ] && [ -e "$file" ]; then
		behind "$file" "$lines"
	elif [ -n "$1" ]; then
		behind "" 0 | tail -n "$1"
	else
		behind "" 0
	fi
	echo
done`

func containerCommand(logs LogOptions) remote.Command {
	args := []string{""}
	if logs.Lines >= 0 {
		args[0] = fmt.Sprint(logs.Lines)
	}
	return remote.Command{Label: "read the output of the pod", Script: containerScript, Args: args}
}

// followPoll is the time between two looks into a journal that is followed.
const followPoll = 500 * time.Millisecond

// readJournal hands on the entries of one host.
func readJournal(ctx context.Context, h *step.Host, logs LogOptions, emit func(journal.Entry) error) error {
	command, newReader := journalCommand(h, logs), journal.NewReader
	if h.Want.Units[0].IsPod() {
		command, newReader = containerCommand(logs), journal.NewContainerReader
	}
	command.AsLogin = h.Remote.Privilege().Problem != ""
	p, err := h.Remote.Start(command)
	if err != nil {
		return err
	}
	end := context.AfterFunc(ctx, func() { _ = p.Close() })
	defer func() {
		if end() {
			_ = p.Close() // everything it had to say is read
		}
	}()
	reader, cursor := newReader(h.Name, p.Stdout), ""
	tick := time.NewTicker(followPoll)
	defer tick.Stop()
	for {
		_, err := fmt.Fprintln(p.Stdin, cursor)
		if err == nil {
			err = reader.Read(func(e journal.Entry) error {
				cursor = e.Cursor
				if e.Time.Before(logs.Since) {
					return nil
				}
				return emit(e)
			})
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, io.EOF):
			return fmt.Errorf("%s: read the journal: %w", h.Name, remote.ErrConnectionLost)
		case err != nil || !logs.Follow:
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// together joins the sources into one channel, which is closed when all are.
func together(ctx context.Context, sources []chan journal.Entry) <-chan journal.Entry {
	all := make(chan journal.Entry)
	var copies sync.WaitGroup
	for _, s := range sources {
		copies.Go(func() {
			for e := range s {
				select {
				case all <- e:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	go func() {
		copies.Wait()
		close(all)
	}()
	return all
}

func receivers(sources []chan journal.Entry) []<-chan journal.Entry {
	out := make([]<-chan journal.Entry, len(sources))
	for i, s := range sources {
		out[i] = s
	}
	return out
}

// Select returns the cluster with the named hosts only, in the order of the
// inventory; all of them when none is named.
func Select(cluster *inventory.Cluster, names []string) (*inventory.Cluster, error) {
	if len(names) == 0 {
		return cluster, nil
	}
	var known []string
	some := *cluster
	some.Hosts = nil
	for _, h := range cluster.Hosts {
		known = append(known, h.Name)
		if slices.Contains(names, h.Name) {
			some.Hosts = append(some.Hosts, h)
		}
	}
	for _, name := range names {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("there is no host %q in cluster %s; it has %s", name, cluster.Name, strings.Join(known, ", "))
		}
	}
	return &some, nil
}
