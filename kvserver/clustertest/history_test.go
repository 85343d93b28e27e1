package clustertest

import (
	"fmt"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// registerInput is a read, or a write of a value that is unique in the test.
type registerInput struct {
	key   string
	write bool
	value string
}

// registerModel is one register per key, which starts empty.
var registerModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, operation := range history {
			key := operation.Input.(registerInput).key
			byKey[key] = append(byKey[key], operation)
		}
		var parts [][]porcupine.Operation
		for _, part := range byKey {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		in := input.(registerInput)
		if in.write {
			return true, in.value
		}
		return output.(string) == state.(string), state
	},
	DescribeOperation: func(input, output any) string {
		in := input.(registerInput)
		if in.write {
			return fmt.Sprintf("put(%s, %s)", in.key, in.value)
		}
		return fmt.Sprintf("get(%s) = %v", in.key, output)
	},
}

// history is what the clients saw.
type history struct {
	start time.Time

	mu           sync.Mutex
	operations   []porcupine.Operation
	clients      int
	acknowledged map[string]string // unique keys whose put was acknowledged
	unknown      int
	refusedReads int
	lastAck      time.Time
	longestGap   time.Duration
}

func newHistory() *history {
	now := time.Now()
	return &history{start: now, lastAck: now, acknowledged: map[string]string{}}
}

// client returns a new porcupine client id. A client whose operation has no
// known outcome is never used again: the operation may take effect later.
func (h *history) client() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clients++
	return h.clients
}

func (h *history) now() int64 { return time.Since(h.start).Nanoseconds() }

func (h *history) read(client int, key string, call int64, value string) {
	h.add(porcupine.Operation{ClientId: client, Input: registerInput{key: key}, Call: call, Output: value, Return: h.now()})
}

func (h *history) readFailed() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refusedReads++
}

// wrote records a write; one without a known outcome may take effect at any
// later time.
func (h *history) wrote(client int, key, value string, call int64, known bool) {
	operation := porcupine.Operation{
		ClientId: client, Input: registerInput{key: key, write: true, value: value},
		Call: call, Output: "", Return: h.now(),
	}
	if !known {
		operation.Return = math.MaxInt64
	}
	h.add(operation)
	h.mu.Lock()
	defer h.mu.Unlock()
	if !known {
		h.unknown++
		return
	}
	now := time.Now()
	h.longestGap = max(h.longestGap, now.Sub(h.lastAck))
	h.lastAck = now
}

func (h *history) add(operation porcupine.Operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.operations = append(h.operations, operation)
}

func (h *history) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.operations)
}

func (h *history) acknowledge(key, value string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.acknowledged[key] = value
}

// check fails the test when no order of the operations explains what the
// clients saw.
func (h *history) check(t *testing.T) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	result, info := porcupine.CheckOperationsVerbose(registerModel, h.operations, 2*time.Minute)
	switch result {
	case porcupine.Illegal:
		path := t.Name() + "-history.html"
		if file, err := createArtifact(path); err == nil {
			_ = porcupine.Visualize(registerModel, info, file)
			_ = file.Close()
			path = file.Name()
		}
		t.Errorf("not linearizable: a read was stale or a write was lost; see %s", path)
	case porcupine.Unknown:
		t.Errorf("porcupine did not decide within 2 minutes; use fewer rounds")
	case porcupine.Ok:
	}
}
