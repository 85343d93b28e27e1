package token

import (
	"context"
	"crypto/rand"
	"strconv"
	"strings"
	"sync"
	"time"

	"muster/kvserver/machine"
	"muster/kvserver/machine/auth"
)

// sweepInterval is how often tokens that expired are thrown away.
const sweepInterval = time.Second

// simple tokens are assigned through the log, so that every member knows them;
// a restart forgets them. Each member counts for itself how long a token was
// not used.
type simple struct {
	config Config

	mu     sync.Mutex
	tokens map[string]*held
	swept  time.Time
}

type held struct {
	user    string
	expires time.Time
}

func newSimple(config Config) *simple {
	return &simple{config: config, tokens: map[string]*held{}}
}

// Seed implements Provider.
func (*simple) Seed() string { return rand.Text() }

// Issue implements Provider.
func (*simple) Issue(_ auth.Identity, applied string) (string, error) { return applied, nil }

// Owner implements Provider. A token that is unknown here may have been
// assigned by an entry that this member has yet to apply.
func (s *simple) Owner(ctx context.Context, token string, revision func() uint64) (auth.Identity, error) {
	_, index, _ := strings.Cut(token, ".")
	if _, err := strconv.ParseUint(index, 10, 64); err != nil {
		return auth.Identity{}, ErrInvalid
	}
	// Not the other way round: a token that was good may belong to a revision
	// that is over by the time that is asked for.
	who := auth.Identity{Revision: revision()}
	if s.use(token, &who) {
		return who, nil
	}
	if err := s.config.CatchUp(ctx); err != nil {
		return auth.Identity{}, err
	}
	who.Revision = revision()
	if s.use(token, &who) {
		return who, nil
	}
	return auth.Identity{}, ErrInvalid
}

// use fills in the owner of a token and keeps it alive.
func (s *simple) use(token string, who *auth.Identity) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	owned, now := s.tokens[token], s.config.Now()
	if owned == nil || !now.Before(owned.expires) {
		return false
	}
	owned.expires = now.Add(s.config.TTL)
	who.User = owned.user
	return true
}

// Observe implements Provider. No changes mean that some may have been missed,
// among them that a token is not good any more, so all are dropped: clients
// authenticate again.
func (s *simple) Observe(changes []machine.TokenChange) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(changes) == 0 {
		clear(s.tokens)
	}
	now := s.config.Now()
	for _, change := range changes {
		switch {
		case !change.Gone:
			s.tokens[change.Token] = &held{user: change.User, expires: now.Add(s.config.TTL)}
		case change.User == "":
			clear(s.tokens)
		default:
			s.drop(func(h *held) bool { return h.user == change.User })
		}
	}
	if now.Sub(s.swept) >= sweepInterval {
		s.swept = now
		s.drop(func(h *held) bool { return !now.Before(h.expires) })
	}
}

func (s *simple) drop(which func(*held) bool) {
	for token, owned := range s.tokens {
		if which(owned) {
			delete(s.tokens, token)
		}
	}
}
