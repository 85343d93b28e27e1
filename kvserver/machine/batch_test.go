package machine

import (
	"bytes"
	"encoding/hex"
	"errors"
	"slices"
	"testing"
)

func TestBatch(t *testing.T) {
	for _, c := range []struct {
		name     string
		proposer uint64
		requests []string
		hex      string
	}{
		{"empty", 0x0102, nil, "01" + "0000000000000102"},
		{"two", 1, []string{"ab", "c"}, "01" + "0000000000000001" + "026162" + "0163"},
		{"no bytes", 1, []string{""}, "01" + "0000000000000001" + "00"},
	} {
		var requests [][]byte
		for _, r := range c.requests {
			requests = append(requests, []byte(r))
		}
		payload := EncodeBatch(c.proposer, requests)
		if got := hex.EncodeToString(payload); got != c.hex {
			t.Errorf("%s: %s, want %s", c.name, got, c.hex)
		}
		proposer, got, err := DecodeBatch(payload)
		if err != nil || proposer != c.proposer || !slices.EqualFunc(got, requests, bytes.Equal) {
			t.Errorf("%s: comes back as %d, %q, %v", c.name, proposer, got, err)
		}
		if proposer, ok := BatchProposer(payload); !ok || proposer != c.proposer {
			t.Errorf("%s: proposed by %d, %t", c.name, proposer, ok)
		}
	}
}

func TestBadBatch(t *testing.T) {
	for name, payload := range map[string]string{
		"nothing":        "",
		"short":          "0100000000",
		"version":        "020000000000000001",
		"cut":            "010000000000000001" + "0561",
		"huge":           "010000000000000001" + "ffffffffffffffffff01",
		"endless length": "010000000000000001" + "ffffffffffffffffffffff",
		"cut length":     "010000000000000001" + "80",
	} {
		b, err := hex.DecodeString(payload)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := DecodeBatch(b); !errors.Is(err, ErrBadBatch) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, payload := range [][]byte{nil, {batchVersion, 0, 0}, {batchVersion + 1, 0, 0, 0, 0, 0, 0, 0, 1}} {
		if proposer, ok := BatchProposer(payload); ok {
			t.Errorf("%x was proposed by %d", payload, proposer)
		}
	}
}

func FuzzDecodeBatch(f *testing.F) {
	f.Add(EncodeBatch(1, nil))
	f.Add(EncodeBatch(2, [][]byte{[]byte("one"), nil, []byte("three")}))
	f.Add([]byte{batchVersion})
	f.Fuzz(func(t *testing.T, payload []byte) {
		proposer, requests, err := DecodeBatch(payload)
		if p, ok := BatchProposer(payload); err == nil && (!ok || p != proposer) {
			t.Fatalf("proposed by %d, %t, want %d", p, ok, proposer)
		}
		if err != nil {
			if !errors.Is(err, ErrBadBatch) {
				t.Fatal(err)
			}
			return
		}
		again, back, err := DecodeBatch(EncodeBatch(proposer, requests))
		if err != nil || again != proposer || !slices.EqualFunc(back, requests, bytes.Equal) {
			t.Fatalf("%d, %q comes back as %d, %q, %v", proposer, requests, again, back, err)
		}
	})
}
