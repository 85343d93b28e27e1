// Package token gives out the tokens with which clients say who they are, in
// place of their passwords, and tells whose a token is. There are etcd's two
// kinds: simple tokens, which the members keep in memory, and JSON Web Tokens,
// which say themselves whose they are.
//
// Tokens are secrets: nothing here logs one.
package token

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"muster/kvserver/machine"
	"muster/kvserver/machine/auth"
)

// ErrInvalid is returned for a token that is nobody's, or nobody's any more.
// The text is etcd's (api/v3rpc/rpctypes/error.go).
var ErrInvalid = errors.New("etcdserver: invalid auth token")

// Provider is a kind of tokens. It is safe for concurrent use.
type Provider interface {
	// Seed is what an authentication carries through the log. It is random,
	// and not a token yet.
	Seed() string
	// Issue returns the token for who was authenticated. applied is the one
	// that the state machine made of the seed.
	Issue(who auth.Identity, applied string) (string, error)
	// Owner returns whose token it is. The error is ErrInvalid, or that of
	// catching up. revision is asked for the present auth revision where the
	// token does not tell one.
	Owner(ctx context.Context, token string, revision func() uint64) (auth.Identity, error)
	// Observe is for machine.Machine.ObserveTokens.
	Observe(changes []machine.TokenChange)
}

// Config is what providers need.
type Config struct {
	// TTL is how long a simple token is good without being used.
	TTL time.Duration
	// CatchUp returns once this member has applied what was acknowledged
	// anywhere before the call.
	CatchUp func(ctx context.Context) error
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// New returns the provider that etcd's flag --auth-token describes:
//
//	simple
//	jwt,sign-method=RS256[,pub-key=FILE][,priv-key=FILE][,ttl=10m]
//
// The sign method is one of the JWT standard's: RS, PS, ES or HS with 256, 384
// or 512, or EdDSA. The keys are PEM, except that HS signs with whatever is in
// the private key's file. Without a private key tokens are only checked. The
// ttl is 5 minutes unless given.
func New(spec string, config Config) (Provider, error) {
	if config.Now == nil {
		config.Now = time.Now
	}
	kind, rest, _ := strings.Cut(spec, ",")
	options, err := parseOptions(rest)
	if err != nil {
		return nil, err
	}
	switch kind {
	case "simple":
		return newSimple(config), nil
	case "jwt":
		return newJWT(options, config.Now)
	}
	return nil, fmt.Errorf("no such kind of tokens: %q; use simple, or jwt with its options", kind)
}

func parseOptions(text string) (map[string]string, error) {
	options := map[string]string{}
	if text == "" {
		return options, nil
	}
	for pair := range strings.SplitSeq(text, ",") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || strings.Contains(value, "=") {
			return nil, fmt.Errorf("the token option %q is not of the form name=value", pair)
		}
		if _, twice := options[key]; twice {
			return nil, fmt.Errorf("the token option %s is given twice; remove one", key)
		}
		options[key] = value
	}
	return options, nil
}
