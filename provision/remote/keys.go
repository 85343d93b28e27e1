package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// Prompt asks the operator for a secret and returns it. The question names
// what the secret is for.
type Prompt func(question string) ([]byte, error)

// keyring holds the private keys to log in with. Hosts share it, so that a
// passphrase is asked for once however many hosts want the key.
type keyring struct {
	agentSocket  string
	agentTimeout time.Duration // to list its keys
	agentStuck   atomic.Bool
	prompt       Prompt
	log          *slog.Logger

	asking atomic.Int32 // hosts waiting for the operator to type

	mu    sync.Mutex
	files map[string]*fileKey
}

func newKeyring(opts Options) *keyring {
	const longest = 5 * time.Second
	return &keyring{agentSocket: opts.AgentSocket, agentTimeout: longest, prompt: opts.Prompt, log: opts.Log, files: map[string]*fileKey{}}
}

// signers returns the keys to offer a hop: the files the user chose, then the
// agent's, or the agent's and then the default files. A server closes the
// connection after a handful of wrong keys, so the order matters. The returned
// close function releases the agent; signers must not be used after it.
func (k *keyring) signers(ctx context.Context, h hop) ([]ssh.Signer, func(), error) {
	var files []ssh.Signer
	for _, path := range h.identityFiles {
		signer, err := k.file(path)
		if errors.Is(err, fs.ErrNotExist) && !h.identityGiven {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		files = append(files, signer)
	}
	held, release := k.agent(ctx)
	if h.identityGiven {
		return append(preferAgent(files, held), held...), release, nil
	}
	return append(held, files...), release, nil
}

// preferAgent leaves out files whose key the agent holds, and puts the agent's
// signer in their place: it needs no passphrase.
func preferAgent(files, held []ssh.Signer) []ssh.Signer {
	out := make([]ssh.Signer, 0, len(files)+len(held))
	for _, f := range files {
		best := f
		for _, a := range held {
			if string(a.PublicKey().Marshal()) == string(f.PublicKey().Marshal()) {
				best = a
			}
		}
		out = append(out, best)
	}
	return out
}

// agent returns the agent's keys; no agent, or one that does not answer, has
// none.
func (k *keyring) agent(ctx context.Context) ([]ssh.Signer, func()) {
	if k.agentSocket == "" || k.agentStuck.Load() {
		return nil, func() {}
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", k.agentSocket)
	if err != nil {
		return nil, func() {}
	}
	// The agent may ask its user before it signs, for as long as the attempt
	// may take; it has no reason to hesitate before that.
	release := context.AfterFunc(ctx, func() { _ = conn.Close() })
	deadline := time.Now().Add(k.agentTimeout)
	_ = conn.SetDeadline(deadline)
	signers, err := agent.NewClient(conn).Signers()
	_ = conn.SetDeadline(time.Time{})
	if err != nil && time.Now().After(deadline) && k.agentStuck.CompareAndSwap(false, true) {
		k.log.Warn(fmt.Sprintf("the ssh-agent at %s does not answer; going on without it", k.agentSocket), "waited", k.agentTimeout)
	}
	if err != nil {
		release()
		_ = conn.Close()
		return nil, func() {}
	}
	return signers, func() {
		release()
		_ = conn.Close()
	}
}

func (k *keyring) file(path string) (ssh.Signer, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if key, ok := k.files[path]; ok {
		return key, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the identity file: %w", err)
	}
	key := &fileKey{path: path, ring: k}
	signer, err := ssh.ParsePrivateKey(text)
	var locked *ssh.PassphraseMissingError
	switch {
	case err == nil:
		key.public = signer.PublicKey()
		key.unlock = func() (ssh.Signer, error) { return signer, nil }
	case errors.As(err, &locked):
		if key.public, err = publicHalf(path, locked); err != nil {
			return nil, err
		}
		key.unlock = sync.OnceValues(func() (ssh.Signer, error) { return key.ask(text) })
	default:
		return nil, fmt.Errorf("identity file %s: %w; give a private key that ssh-keygen made", path, err)
	}
	k.files[path] = key
	return key, nil
}

// publicHalf finds the public key of an encrypted file: inside it in
// OpenSSH's own format, beside it otherwise.
func publicHalf(path string, locked *ssh.PassphraseMissingError) (ssh.PublicKey, error) {
	if locked.PublicKey != nil {
		return locked.PublicKey, nil
	}
	text, err := os.ReadFile(path + ".pub")
	if err != nil {
		return nil, fmt.Errorf("identity file %s is encrypted in an old format and its public key is missing: %w; run ssh-keygen -y -f %s > %s.pub", path, err, path, path)
	}
	public, _, _, _, err := ssh.ParseAuthorizedKey(text)
	if err != nil {
		return nil, fmt.Errorf("read the public key %s.pub: %w", path, err)
	}
	return public, nil
}

// fileKey is a private key in a file. Its public half is known at once; the
// passphrase is asked for only when a server has accepted the public half.
type fileKey struct {
	path   string
	public ssh.PublicKey
	unlock func() (ssh.Signer, error)
	ring   *keyring
}

var _ ssh.AlgorithmSigner = (*fileKey)(nil)

func (f *fileKey) PublicKey() ssh.PublicKey { return f.public }

func (f *fileKey) Sign(rand io.Reader, data []byte) (*ssh.Signature, error) {
	return f.SignWithAlgorithm(rand, data, "")
}

func (f *fileKey) SignWithAlgorithm(rand io.Reader, data []byte, algorithm string) (*ssh.Signature, error) {
	f.ring.asking.Add(1)
	signer, err := f.unlock()
	f.ring.asking.Add(-1)
	if err != nil {
		return nil, err
	}
	if s, ok := signer.(ssh.AlgorithmSigner); ok {
		return s.SignWithAlgorithm(rand, data, algorithm)
	}
	return signer.Sign(rand, data)
}

// passphraseAttempts is how often a wrong passphrase may be corrected.
const passphraseAttempts = 3

func (f *fileKey) ask(text []byte) (ssh.Signer, error) {
	if f.ring.prompt == nil {
		return nil, fmt.Errorf("identity file %s needs its passphrase and there is no terminal to ask on; run ssh-add %s first", f.path, f.path)
	}
	for range passphraseAttempts {
		passphrase, err := f.ring.prompt("passphrase for " + f.path)
		if err != nil {
			return nil, fmt.Errorf("ask for the passphrase of %s: %w", f.path, err)
		}
		signer, err := ssh.ParsePrivateKeyWithPassphrase(text, passphrase)
		clear(passphrase)
		if err == nil {
			return signer, nil
		}
	}
	return nil, fmt.Errorf("identity file %s: wrong passphrase %d times; check it with ssh-keygen -y -f %s", f.path, passphraseAttempts, f.path)
}
