package mvcc

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// formatVersion is the layout described in DESIGN.md. A build reads the
// formats it knows and refuses all others.
const formatVersion = 1

const (
	metaFormat = "format" // uint32
	metaHead   = "head"   // Head
	metaScrub  = "scrub"  // scrubState
)

// noRevision is etcd's compacted revision of a store that was never compacted.
const noRevision = -1

// Head is where a store stands.
type Head struct {
	// Current is the revision of the last transaction that wrote; 1 in a new
	// store.
	Current int64
	// Compacted is the lowest revision that can be read; -1 when the store
	// was never compacted.
	Compacted int64
}

func metaKey(name string) []byte { return append([]byte{metaPrefix}, name...) }

func (h Head) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(h.Current))
	return binary.BigEndian.AppendUint64(b, uint64(h.Compacted))
}

func readHead(r pebble.Reader) (Head, error) {
	b, err := readMeta(r, metaHead, 16)
	if err != nil {
		return Head{}, err
	}
	if b == nil {
		return Head{Current: 1, Compacted: noRevision}, nil
	}
	return Head{
		Current:   int64(binary.BigEndian.Uint64(b)),
		Compacted: int64(binary.BigEndian.Uint64(b[8:])),
	}, nil
}

// scrubState is how far the physical removal of compacted versions has come.
type scrubState struct {
	done   int64    // everything a compaction at this revision removes is gone
	target int64    // the compaction being carried out; equal to done when idle
	next   Revision // first history record not yet looked at
}

func (s scrubState) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(s.done))
	b = binary.BigEndian.AppendUint64(b, uint64(s.target))
	b = binary.BigEndian.AppendUint64(b, uint64(s.next.Main))
	return binary.BigEndian.AppendUint32(b, s.next.Sub)
}

func readScrubState(r pebble.Reader) (scrubState, error) {
	b, err := readMeta(r, metaScrub, 28)
	if err != nil {
		return scrubState{}, err
	}
	if b == nil {
		return scrubState{done: noRevision, target: noRevision}, nil
	}
	return scrubState{
		done:   int64(binary.BigEndian.Uint64(b)),
		target: int64(binary.BigEndian.Uint64(b[8:])),
		next: Revision{
			Main: int64(binary.BigEndian.Uint64(b[16:])),
			Sub:  binary.BigEndian.Uint32(b[24:]),
		},
	}, nil
}

// readMeta returns a copy of a value of known size, nil when it is absent.
func readMeta(r pebble.Reader, name string, size int) ([]byte, error) {
	v, closer, err := r.Get(metaKey(name))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the store's %s: %w", name, err)
	}
	b := append([]byte{}, v...)
	if err := closer.Close(); err != nil {
		return nil, fmt.Errorf("read the store's %s: %w", name, err)
	}
	if len(b) != size {
		return nil, fmt.Errorf("%w: %s has %d bytes, want %d", ErrDamaged, name, len(b), size)
	}
	return b, nil
}
