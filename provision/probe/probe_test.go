package probe

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestServe(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := gone.Addr().String()
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	in, ask := io.Pipe()
	answer, out := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := Serve(t.Context(), in, out, dir)
		_ = out.Close()
		ended <- err
	}()
	asks, answers := json.NewEncoder(ask), json.NewDecoder(answer)
	if err := asks.Encode(Opening{Listen: []string{free, taken.Addr().String(), "not an address"}}); err != nil {
		t.Fatal(err)
	}
	var opened Opened
	if err := answers.Decode(&opened); err != nil {
		t.Fatal(err)
	}
	if len(opened.Taken) != 1 || opened.Taken[0] != taken.Addr().String() || len(opened.Failed) != 1 || opened.Failed["not an address"] == "" {
		t.Errorf("opened: %+v", opened)
	}
	if err := asks.Encode(Measuring{Dial: []string{free, taken.Addr().String(), "127.0.0.1:1"}}); err != nil {
		t.Fatal(err)
	}
	var m Measured
	if err := answers.Decode(&m); err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{free, taken.Addr().String()} {
		if trip := m.Trips[address]; trip.Error != "" || trip.Median <= 0 || trip.Worst < trip.Median {
			t.Errorf("%s: %+v", address, trip)
		}
	}
	if trip := m.Trips["127.0.0.1:1"]; !strings.Contains(trip.Error, "refused") {
		t.Errorf("where nobody listens: %+v", trip)
	}
	if s := m.Sync; s.Error != "" || s.Median <= 0 || s.P99 < s.Median || s.Worst < s.P99 {
		t.Errorf("flushing: %+v", s)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if err := ask.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if conn, err := net.Dial("tcp", free); err == nil {
		_ = conn.Close()
		t.Error("it goes on listening")
	}
}

func TestServeRefusesNonsense(t *testing.T) {
	for _, text := range []string{"", "x", `{"listen":[]}`, `{"listen":[]}` + "\n{"} {
		if err := Serve(t.Context(), strings.NewReader(text), io.Discard, t.TempDir()); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

func TestNear(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{dir: dir, filepath.Join(dir, "a", "b"): dir, file: dir, "/": "/"} {
		if got := Near(path); got != want {
			t.Errorf("near %s is %s, want %s", path, got, want)
		}
	}
}
