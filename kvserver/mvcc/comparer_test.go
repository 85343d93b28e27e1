package mvcc

import (
	"bytes"
	"fmt"
	"testing"
)

// smallStrings are all strings of at most n bytes over an alphabet with the
// bytes that mean something.
func smallStrings(n int) [][]byte {
	all := [][]byte{{}}
	last := all
	for range n {
		var next [][]byte
		for _, s := range last {
			for _, b := range []byte{0x00, 0x01, 0x02, 'k', 0xff} {
				next = append(next, append(bytes.Clone(s), b))
			}
		}
		all = append(all, next...)
		last = next
	}
	return all
}

// TestComparer checks what pebble.CheckComparer checks. That one cannot be
// used: it also cuts bytes off the front of every prefix, down to one byte,
// and asks that the rest still ends where it did, but the terminator has two.
func TestComparer(t *testing.T) {
	var prefixes [][]byte
	for _, key := range smallStrings(2) {
		prefixes = append(prefixes, appendPrefix(nil, key))
	}
	prefixes = append(prefixes, []byte("mhead"), []byte("s/applied"))
	var suffixes [][]byte
	for _, rev := range []Revision{{}, {Main: 1}, {Main: 1, Sub: 1}, {Main: 256}, {Main: 1 << 40, Sub: 1 << 20}} {
		suffixes = append(suffixes, appendSuffix(nil, rev))
	}
	c := newComparer()
	var keys [][]byte
	for _, p := range prefixes {
		terminated := bytes.HasSuffix(p, []byte{escapeByte, terminatorByte})
		keys = append(keys, p)
		for _, s := range suffixes {
			if terminated {
				keys = append(keys, append(bytes.Clone(p), s...))
			}
		}
	}
	for _, a := range keys {
		na := c.Split(a)
		if p := a[:na]; len(a) != na && len(a) != na+suffixLen {
			t.Errorf("%q splits after %q", a, p)
		}
		for _, b := range keys {
			nb := c.Split(b)
			want := bytes.Compare(a[:na], b[:nb])
			if want == 0 {
				want = c.ComparePointSuffixes(a[na:], b[nb:])
			}
			if got := c.Compare(a, b); got != want {
				t.Errorf("Compare(%q, %q) = %d, by prefix and suffix %d", a, b, got, want)
			}
			if got := c.Equal(a, b); got != (want == 0) {
				t.Errorf("Equal(%q, %q) = %t", a, b, got)
			}
			if want < 0 {
				if k := c.Separator(nil, a, b); c.Compare(a, k) > 0 || c.Compare(k, b) >= 0 {
					t.Errorf("Separator(%q, %q) = %q", a, b, k)
				}
			}
		}
	}
}

// TestSplitAgreesWithOrder checks the rules of pebble.Split on all short byte
// strings, valid keys or not: Pebble may cut keys anywhere for its indexes.
func TestSplitAgreesWithOrder(t *testing.T) {
	all := smallStrings(4)
	c := newComparer()
	for _, a := range all {
		pa := c.Split.Prefix(a)
		if len(pa) < len(a) && c.Compare(pa, a) >= 0 {
			t.Fatalf("prefix %q is not before %q", pa, a)
		}
		if n := c.Split(pa); n != len(pa) {
			t.Fatalf("prefix %q of %q splits at %d", pa, a, n)
		}
		for _, b := range all {
			pb := c.Split.Prefix(b)
			if c.Compare(a, b) <= 0 && c.Compare(pa, pb) > 0 {
				t.Fatalf("%q <= %q, but their prefixes %q > %q", a, b, pa, pb)
			}
			if c.Compare(pa, pb) < 0 && c.Compare(a, b) >= 0 {
				t.Fatalf("prefixes %q < %q, but %q >= %q", pa, pb, a, b)
			}
		}
	}
}

func TestImmediateSuccessor(t *testing.T) {
	var prefixes [][]byte
	for _, s := range smallStrings(4) {
		if split(s) == len(s) {
			prefixes = append(prefixes, s)
		}
	}
	for _, p := range prefixes {
		if len(p) == 4 {
			continue // its successor may be longer than the strings looked at
		}
		next := immediateSuccessor(nil, p)
		if split(next) != len(next) || bytes.Compare(p, next) >= 0 {
			t.Errorf("successor %q of %q", next, p)
		}
		for _, other := range prefixes {
			if bytes.Compare(p, other) < 0 && bytes.Compare(other, next) < 0 {
				t.Errorf("%q lies between %q and its successor %q", other, p, next)
			}
		}
	}
}

func TestKeyOrder(t *testing.T) {
	keys := smallStrings(3)
	for _, a := range keys {
		pa := appendPrefix(nil, a)
		if len(pa) != prefixLen(a) {
			t.Errorf("prefix of %q has %d bytes, want %d", a, len(pa), prefixLen(a))
		}
		for _, b := range keys {
			if got, want := bytes.Compare(pa, appendPrefix(nil, b)), bytes.Compare(a, b); got != want {
				t.Errorf("order of %q and %q: %d, want %d", a, b, got, want)
			}
		}
	}
	revisions := []Revision{{}, {Sub: 1}, {Main: 1}, {Main: 1, Sub: 7}, {Main: 255}, {Main: 256}, {Main: 1 << 62, Sub: 1<<32 - 1}}
	for i, rev := range revisions {
		suffix := appendSuffix(nil, rev)
		if got, err := decodeSuffix(suffix); err != nil || got != rev {
			t.Errorf("revision %v comes back as %v, %v", rev, got, err)
		}
		if i > 0 && bytes.Compare(suffix, appendSuffix(nil, revisions[i-1])) >= 0 {
			t.Errorf("revision %v is not before %v", rev, revisions[i-1])
		}
	}
}

// TestLayout pins the bytes on disk.
func TestLayout(t *testing.T) {
	rev := Revision{Main: 0x0102, Sub: 3}
	for _, c := range []struct{ name, got, want string }{
		{"version", fmt.Sprintf("%x", appendSuffix(appendPrefix(nil, []byte("a\x00b")), rev)), "6b6100ff620001" + "fffffffffffffefd" + "fffffffc"},
		{"history", fmt.Sprintf("%x", appendHistoryKey(nil, rev)), "72" + "0000000000000102" + "00000003"},
		{"head", fmt.Sprintf("%x", Head{Current: 5, Compacted: -1}.encode()), "0000000000000005" + "ffffffffffffffff"},
		{"scrub", fmt.Sprintf("%x", scrubState{done: 1, target: 2, next: rev}.encode()), "0000000000000001" + "0000000000000002" + "0000000000000102" + "00000003"},
		{"comparer", newComparer().Name, "muster.mvcc.v1"},
	} {
		if c.got != c.want {
			t.Errorf("%s: %s, want %s", c.name, c.got, c.want)
		}
	}
}
