package etcdsnap

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"muster/kvserver/machine"
)

func newImage(t *testing.T) *machine.Image {
	t.Helper()
	m, err := machine.Open(filepath.Join(t.TempDir(), "kv"), machine.Options{CacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	image, err := m.Image()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(image.Close(), m.Close()); err != nil {
			t.Error(err)
		}
	})
	return image
}

// What a member needs to go on is not given to a snapshot.
func TestNoRoom(t *testing.T) {
	dir := t.TempDir()
	e := NewExporter(dir)
	e.free = func(string) (uint64, error) { return keptFree - 1, nil }
	_, err := e.Export(context.Background(), newImage(t))
	if !errors.Is(err, ErrNoRoom) || !strings.Contains(err.Error(), "ask another member") {
		t.Errorf("error %v, want ErrNoRoom and what to do", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	e.free = freeBytes
	database, err := e.Export(context.Background(), newImage(t))
	if err != nil {
		t.Fatalf("after a failure: %v", err)
	}
	if err := database.Close(); err != nil {
		t.Error(err)
	}
}

func TestOneAtATime(t *testing.T) {
	e := NewExporter(t.TempDir())
	image := newImage(t)
	first, err := e.Export(context.Background(), image)
	if err != nil {
		t.Fatal(err)
	}
	impatient, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := e.Export(impatient, image); !errors.Is(err, context.Canceled) {
		t.Errorf("a second one beside the first: %v", err)
	}
	patient := make(chan error, 1)
	go func() {
		second, err := e.Export(context.Background(), image)
		if err == nil {
			err = second.Close()
		}
		patient <- err
	}()
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if err := <-patient; err != nil {
		t.Errorf("the one that waited: %v", err)
	}
}

func TestExportFails(t *testing.T) {
	if _, err := NewExporter(filepath.Join(t.TempDir(), "missing")).Export(context.Background(), newImage(t)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("into a directory that is not there: %v", err)
	}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := NewExporter(t.TempDir()).Export(cancelled, newImage(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("for a caller who is gone: %v", err)
	}
}
