package step

import (
	"net/netip"
	"testing"
)

func TestCollide(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{"10.0.0.1:2379", "10.0.0.1:2379", true},
		{"10.0.0.1:2379", "10.0.0.1:2380", false},
		{"10.0.0.1:2379", "10.0.0.2:2379", false},
		{"10.0.0.1:2379", "0.0.0.0:2379", true},
		{"10.0.0.1:2379", "[::]:2379", true},
		{"0.0.0.0:2379", "127.0.0.1:2379", true},
		{"127.0.0.1:2379", "[::ffff:127.0.0.1]:2379", true},
		{"[fd00::1]:2379", "[fd00::1]:2379", true},
	} {
		if got := collide(netip.MustParseAddrPort(test.a), netip.MustParseAddrPort(test.b)); got != test.want {
			t.Errorf("%s and %s collide: %v, want %v", test.a, test.b, got, test.want)
		}
	}
}

func TestGoArch(t *testing.T) {
	for machine, want := range map[string]string{"x86_64": "amd64", "aarch64": "arm64", "riscv64": "", "i686": "", "": ""} {
		if got := goArch(machine); got != want {
			t.Errorf("%s: %q, want %q", machine, got, want)
		}
	}
}
