package provision

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/version"
	"go.etcd.io/etcd/client/pkg/v3/fileutil"

	"muster/provision/image"
	"muster/provision/remote"
	"muster/provision/step"
)

// programs finds what is to be installed: where the inventory or the operator
// says, beside the muster executable, or, in a checkout of muster, by making
// it on the spot.
type programs struct {
	binaryDir string
	beside    string // directory of the muster executable
	reporter  step.Reporter

	mu     sync.Mutex
	found  map[wanted]func() (*remote.Payload, error)
	images map[wanted]func() (builtImage, error)
}

type wanted struct{ program, source, arch string }

func newPrograms(o Options) *programs {
	p := &programs{binaryDir: o.BinaryDir, reporter: o.Reporter, found: map[wanted]func() (*remote.Payload, error){}, images: map[wanted]func() (builtImage, error){}}
	if executable, err := os.Executable(); err == nil {
		p.beside = filepath.Dir(executable)
	}
	return p
}

// Find implements step.Programs. Hosts of one architecture share the payload.
func (p *programs) Find(ctx context.Context, program, source, arch string) (*remote.Payload, error) {
	w := wanted{program, source, arch}
	p.mu.Lock()
	find := p.found[w]
	if find == nil {
		find = sync.OnceValues(func() (*remote.Payload, error) { return p.find(ctx, w) })
		p.found[w] = find
	}
	p.mu.Unlock()
	return find()
}

// builtImage is a container image with its name.
type builtImage struct {
	name    string
	payload *remote.Payload
}

// Image implements step.Programs.
func (p *programs) Image(ctx context.Context, source, arch string) (string, *remote.Payload, error) {
	w := wanted{source: source, arch: arch}
	p.mu.Lock()
	build := p.images[w]
	if build == nil {
		build = sync.OnceValues(func() (builtImage, error) { return p.buildImage(ctx, w) })
		p.images[w] = build
	}
	p.mu.Unlock()
	built, err := build()
	return built.name, built.payload, err
}

func (p *programs) buildImage(ctx context.Context, w wanted) (builtImage, error) {
	programs, err := p.imagePrograms(ctx, w.source, w.arch)
	if err != nil {
		return builtImage{}, err
	}
	name := image.Name(version.Version, programs)
	var content bytes.Buffer
	if _, err := image.Write(&content, name, programs); err != nil {
		return builtImage{}, fmt.Errorf("make the image %s: %w", name, err)
	}
	return builtImage{name, remote.NewPayload(content.Bytes())}, nil
}

// imagePrograms are what the image of one architecture holds.
func (p *programs) imagePrograms(ctx context.Context, source, arch string) (image.Programs, error) {
	server, err := p.Find(ctx, "musterd", source, arch)
	if err != nil {
		return image.Programs{}, err
	}
	client, err := p.Find(ctx, "musterctl", "", arch)
	if err != nil {
		return image.Programs{}, err
	}
	return image.Programs{Architecture: arch, Server: server.Content(), Client: client.Content()}, nil
}

// ErrNoProgram is wrapped when a program to install is nowhere to be found.
var ErrNoProgram = errors.New("no program to install")

func (p *programs) find(ctx context.Context, w wanted) (*remote.Payload, error) {
	if w.source != "" {
		return load(w.source, w.arch)
	}
	for _, dir := range []string{p.binaryDir, p.beside} {
		if dir == "" {
			continue
		}
		for _, name := range []string{w.program + "-linux-" + w.arch, w.program} {
			payload, err := load(filepath.Join(dir, name), w.arch)
			if err == nil {
				return payload, nil
			}
			var other *archError
			if !errors.Is(err, fs.ErrNotExist) && !errors.As(err, &other) {
				return nil, err
			}
		}
		if dir == p.binaryDir {
			return nil, fmt.Errorf("%w: %s has neither %s-linux-%s nor a %[3]s for linux/%[4]s", ErrNoProgram, dir, w.program, w.arch)
		}
	}
	root, ok := checkout()
	if !ok {
		return nil, fmt.Errorf("%w: %s for linux/%s is not beside muster in %s; put %[2]s-linux-%[3]s there or name its directory with --binary-dir", ErrNoProgram, w.program, w.arch, p.beside)
	}
	return p.build(ctx, root, w)
}

// archError is a program for other machines than the one it is wanted for.
type archError struct{ path, is, want string }

func (e *archError) Error() string {
	return fmt.Sprintf("%s is a program for %s, and linux/%s is wanted", e.path, e.is, e.want)
}

// load reads a program and makes sure that the host can run it.
func load(path, arch string) (*remote.Payload, error) {
	p, err := remote.ReadPayload(path)
	if err != nil {
		return nil, err
	}
	file, err := elf.NewFile(bytes.NewReader(p.Content()))
	if err != nil {
		return nil, &archError{path, "another system than Linux", arch}
	}
	machine := map[elf.Machine]string{elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64"}[file.Machine]
	if machine != arch {
		return nil, &archError{path, file.Machine.String(), arch}
	}
	return p, nil
}

// noticeable is how long compiling may take before the operator is told.
const noticeable = time.Second

// build makes the programs from the checkout. The result stays in the user's
// cache: what has not changed is not linked again, and equal sources give
// equal bytes, which a second apply recognizes.
func (p *programs) build(ctx context.Context, root string, w wanted) (*remote.Payload, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("find a place for %s: %w; set XDG_CACHE_HOME, or name a directory of programs with --binary-dir", w.program, err)
	}
	dir := filepath.Join(cache, "muster", "linux-"+w.arch)
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // programs are no secret
		return nil, fmt.Errorf("make a directory for %s: %w", w.program, err)
	}
	// One lock for building and reading. The compiler inherits it, so that a
	// killed muster does not let the next one read what is half written.
	lock, err := fileutil.LockFile(filepath.Join(dir, "."+w.program+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	defer lock.Close() //nolint:errcheck // the lock goes either way
	slow := time.AfterFunc(noticeable, func() {
		p.reporter.Report(step.Event{Time: time.Now(), Kind: step.Note, Step: "programs", Text: fmt.Sprintf("compiling %s for linux/%s; the first time takes a minute or two", w.program, w.arch)})
	})
	defer slow.Stop()
	output := filepath.Join(dir, w.program)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-tags=grpcnotrace", "-ldflags=-s -w", "-o", output, "./cmd/"+w.program)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+w.arch)
	cmd.ExtraFiles = []*os.File{lock.File}
	if text, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil { // the compiler was killed for it
			return nil, fmt.Errorf("compile %s: %w", w.program, ctx.Err())
		}
		return nil, fmt.Errorf("compile %s in %s: %w: %s", w.program, root, err, strings.TrimSpace(string(text)))
	}
	return load(output, w.arch)
}

// module is the first line of go.mod that makes a directory a checkout.
const module = "module muster"

// checkout finds muster's own source upward from the working directory, or
// from where this program was compiled.
func checkout() (string, bool) {
	var starts []string
	if dir, err := os.Getwd(); err == nil {
		starts = append(starts, dir)
	}
	if executable, err := os.Executable(); err == nil {
		starts = append(starts, filepath.Dir(executable))
	}
	for _, dir := range starts {
		for {
			text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
			line, _, _ := strings.Cut(string(text), "\n")
			if err == nil && strings.TrimSpace(line) == module {
				return dir, hasGo()
			}
			parent := filepath.Dir(dir)
			if parent == dir {
				break
			}
			dir = parent
		}
	}
	return "", false
}

func hasGo() bool {
	_, err := exec.LookPath("go")
	return err == nil && runtime.GOOS != "windows"
}
