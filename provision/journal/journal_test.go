package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

// What journalctl -o json prints, with the fields that are not read left in.
const sample = `{"__CURSOR":"s=1;i=a","__REALTIME_TIMESTAMP":"1768500000000001","_TRANSPORT":"stdout","SYSLOG_IDENTIFIER":"musterd","_PID":"42","MESSAGE":"ready"}
{"__CURSOR":"s=1;i=b","__REALTIME_TIMESTAMP":"1768500000000002","MESSAGE":[104,195,188,255]}
{"__CURSOR":"s=1;i=c","__REALTIME_TIMESTAMP":"1768500000000003","MESSAGE":null}

not read any more
`

func TestRead(t *testing.T) {
	r := NewReader("h", strings.NewReader(sample))
	var got []string
	emit := func(e Entry) error {
		got = append(got, fmt.Sprintf("%s %d %s[%d] %s %s", e.Host, e.Time.UnixMicro(), e.Program, e.PID, e.Cursor, e.Message))
		return nil
	}
	if err := r.Read(emit); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"h 1768500000000001 musterd[42] s=1;i=a ready",
		"h 1768500000000002 [0] s=1;i=b hü?",
		"h 1768500000000003 [0] s=1;i=c (a message that journalctl does not print)",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if err := r.Read(emit); err == nil || err.Error() != "h: journalctl: not read any more" {
		t.Errorf("what is no entry: %v", err)
	}
	if err := NewReader("h", strings.NewReader("")).Read(emit); !errors.Is(err, io.EOF) {
		t.Errorf("an end without an answer: %v", err)
	}
}

// What a container prints is in files, with the time in front.
func TestReadContainer(t *testing.T) {
	r := NewContainerReader("h", strings.NewReader("/var/log/pods/p/etcd/0.log 1 2026-01-15T20:00:00.000000001+02:00 stderr F one two\n/var/log/pods/p/etcd/0.log 2 2026-01-15T18:00:01Z stdout P\n\ntail: no such file\n"))
	var got []string
	emit := func(e Entry) error {
		got = append(got, fmt.Sprintf("%s %s %s %s|%s", e.Host, e.Time.UTC().Format(time.RFC3339Nano), e.Program, e.Cursor, e.Message))
		return nil
	}
	if err := r.Read(emit); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"h 2026-01-15T18:00:00.000000001Z etcd /var/log/pods/p/etcd/0.log 1|one two",
		"h 2026-01-15T18:00:01Z etcd /var/log/pods/p/etcd/0.log 2|",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
	if err := r.Read(emit); err == nil || err.Error() != "h: the container: tail: no such file" {
		t.Errorf("what is no line of a container: %v", err)
	}
}

func source(host string, times ...int) <-chan Entry {
	c := make(chan Entry, len(times))
	for _, at := range times {
		c <- Entry{Host: host, Time: time.Unix(int64(at), 0)}
	}
	close(c)
	return c
}

func TestMerge(t *testing.T) {
	var got []string
	emit := func(e Entry) error {
		got = append(got, fmt.Sprint(e.Host, e.Time.Unix()))
		return nil
	}
	if err := Merge(t.Context(), []<-chan Entry{source("a", 1, 4, 5), source("b"), source("c", 2, 3, 6)}, emit); err != nil {
		t.Fatal(err)
	}
	if want := []string{"a1", "c2", "c3", "a4", "a5", "c6"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	full := errors.New("the disk is full")
	if err := Merge(t.Context(), []<-chan Entry{source("a", 1)}, func(Entry) error { return full }); !errors.Is(err, full) {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Merge(ctx, []<-chan Entry{make(chan Entry)}, emit); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestFollow(t *testing.T) {
	in := make(chan Entry, 3)
	for _, at := range []int64{3, 1, 2} {
		in <- Entry{Time: time.Unix(at, 0)}
	}
	close(in)
	var got []int64
	if err := Follow(t.Context(), in, time.Hour, func(e Entry) error {
		got = append(got, e.Time.Unix())
		return nil
	}); err != nil || !slices.Equal(got, []int64{1, 2, 3}) {
		t.Errorf("got %v, %v", got, err)
	}
}
