package remote

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"sync"

	"github.com/klauspost/compress/gzip"
)

// Payload is a large file to upload, read, hashed and, if a slow link asks for
// it, compressed once for all hosts.
type Payload struct {
	content    []byte
	sum        string
	packedRest func() ([]byte, error) // what follows the first probeSize bytes
}

// NewPayload wraps content, which must not change afterwards.
func NewPayload(content []byte) *Payload {
	sum := sha256.Sum256(content)
	p := &Payload{content: content, sum: hex.EncodeToString(sum[:])}
	p.packedRest = sync.OnceValues(func() ([]byte, error) {
		var b bytes.Buffer
		// The fastest level: most of what compression can win on a program
		// is won there.
		w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
		if err != nil {
			return nil, err
		}
		if _, err := w.Write(p.content[probeSize:]); err != nil {
			return nil, err
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
		return b.Bytes(), nil
	})
	return p
}

// ReadPayload reads a file.
func ReadPayload(path string) (*Payload, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the file to upload: %w", err)
	}
	return NewPayload(content), nil
}

// SHA256 is the hash of the content in lower-case hexadecimal.
func (p *Payload) SHA256() string { return p.sum }

// Size is the length of the content in bytes.
func (p *Payload) Size() int64 { return int64(len(p.content)) }

// Content is the payload itself; it must not be changed.
func (p *Payload) Content() []byte { return p.content }
