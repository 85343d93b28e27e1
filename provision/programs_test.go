package provision

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"muster/provision/remote"
)

// program is the smallest file that says which machine it is for, and some
// content.
func program(t *testing.T, machine elf.Machine, content string) []byte {
	t.Helper()
	header := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT), Ehsize: 64}
	copy(header.Ident[:], elf.ELFMAG)
	header.Ident[elf.EI_CLASS], header.Ident[elf.EI_DATA], header.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, header); err != nil {
		t.Fatal(err)
	}
	b.WriteString(content)
	return b.Bytes()
}

func TestFindPrograms(t *testing.T) {
	const x86, arm = elf.EM_X86_64, elf.EM_AARCH64
	for _, test := range []struct {
		name   string
		files  map[string]elf.Machine // path below the test's directory; the content is the path
		source string
		dir    string
		arch   string
		want   string // path found
		err    string
	}{
		{name: "beside muster", files: map[string]elf.Machine{"bin/musterd": x86}, arch: "amd64", want: "bin/musterd"},
		{name: "the name with the architecture first", files: map[string]elf.Machine{"bin/musterd": x86, "bin/musterd-linux-amd64": x86}, arch: "amd64", want: "bin/musterd-linux-amd64"},
		{name: "by architecture", files: map[string]elf.Machine{"bin/musterd-linux-arm64": arm, "bin/musterd": x86}, arch: "arm64", want: "bin/musterd-linux-arm64"},
		{name: "binary dir first", files: map[string]elf.Machine{"bin/musterd": x86, "dir/musterd": x86}, dir: "dir", arch: "amd64", want: "dir/musterd"},
		{name: "binary dir only", files: map[string]elf.Machine{"bin/musterd": arm, "dir/musterd": x86}, dir: "dir", arch: "arm64", err: "has neither musterd-linux-arm64 nor a musterd for linux/arm64"},
		{name: "the inventory's own", files: map[string]elf.Machine{"bin/musterd": x86, "other/etcd": x86}, source: "other/etcd", arch: "amd64", want: "other/etcd"},
		{name: "the inventory's own is for another machine", files: map[string]elf.Machine{"bin/musterd": arm, "other/etcd": x86}, source: "other/etcd", arch: "arm64", err: "is a program for EM_X86_64, and linux/arm64 is wanted"},
		{name: "the inventory's own is missing", source: "other/etcd", arch: "amd64", err: "no such file"},
		{name: "nowhere", files: map[string]elf.Machine{"bin/musterd": x86}, arch: "arm64", err: "put musterd-linux-arm64 there or name its directory with --binary-dir"},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := t.TempDir()
			t.Chdir(root) // no checkout here
			for name, machine := range test.files {
				if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(name, program(t, machine, name), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			p := newPrograms(Options{BinaryDir: test.dir, Reporter: nobody{}})
			p.beside = "bin"
			payload, err := p.Find(t.Context(), "musterd", test.source, test.arch)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("error %v, want %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if want := remote.NewPayload(program(t, test.files[test.want], test.want)); payload.SHA256() != want.SHA256() {
				t.Errorf("found %q", payload.Content()[64:])
			}
			again, err := p.Find(t.Context(), "musterd", test.source, test.arch)
			if err != nil || again != payload {
				t.Errorf("the second host does not share the first one's payload: %v", err)
			}
		})
	}
}

func TestBuiltProgramsAreTheSameEveryTime(t *testing.T) {
	t.Setenv("GOFLAGS", "")
	var sums []string
	for range 2 {
		p := newPrograms(Options{Reporter: nobody{}})
		payload, err := p.Find(t.Context(), "musterctl", "", runtime.GOARCH)
		if err != nil {
			t.Fatal(err)
		}
		sums = append(sums, payload.SHA256())
	}
	if sums[0] != sums[1] {
		t.Errorf("two builds differ: %q", sums)
	}
}

// A compiler that is killed by an interrupt is no failure to compile.
func TestInterruptedBuild(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := newPrograms(Options{Reporter: nobody{}}).Find(ctx, "musterctl", "", runtime.GOARCH)
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v, want %v", err, context.Canceled)
	}
}

func TestBuildFailureShowsTheCompiler(t *testing.T) {
	p := newPrograms(Options{Reporter: nobody{}})
	_, err := p.Find(t.Context(), "nosuchprogram", "", runtime.GOARCH)
	if err == nil || errors.Is(err, ErrNoProgram) || !strings.Contains(err.Error(), "nosuchprogram") {
		t.Fatalf("error %v", err)
	}
}
