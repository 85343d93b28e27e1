package mvcc

import (
	"errors"
	"testing"
	"time"
)

// The goroutine that met the failure must not go on, or something could be
// acknowledged after it.
func TestFatalNeverReturns(t *testing.T) {
	told := make(chan error, 1)
	returned := make(chan struct{})
	go func() {
		newPebbleLogger(nil, func(err error) { told <- err }).Fatalf("sync %s", "MANIFEST")
		close(returned)
	}()
	select {
	case err := <-told:
		if !errors.Is(err, errFatal) {
			t.Errorf("told %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("nobody was told")
	}
	select {
	case <-returned:
		t.Error("Fatalf returned")
	case <-time.After(50 * time.Millisecond):
	}
}
