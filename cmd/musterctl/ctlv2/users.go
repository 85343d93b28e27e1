package ctlv2

import (
	"context"
	"reflect"
	"strings"

	"github.com/bgentry/speakeasy"
	"github.com/urfave/cli"
	"go.etcd.io/etcd/client/pkg/v3/pathutil"
	"go.etcd.io/etcd/client/v2"
)

func (s *session) userCommands() cli.Command {
	roles := []cli.Flag{cli.StringSliceFlag{Name: "roles", Value: new(cli.StringSlice), Usage: "List of roles to grant or revoke"}}
	user := func(name, usage string, flags []cli.Flag, do func(context.Context, client.AuthUserAPI, *cli.Context) error) cli.Command {
		return cli.Command{Name: name, Usage: usage, ArgsUsage: "<user>", Flags: flags, Action: s.onAuth(1, "Please provide a username",
			func(ctx context.Context, connected client.Client, c *cli.Context) error {
				return do(ctx, client.NewAuthUserAPI(connected), c)
			})}
	}
	grant := user("grant", "grant roles to an etcd user", roles, s.userRoles(client.AuthUserAPI.GrantUser))
	grant.Action = withRoles(grant.Action)
	revoke := user("revoke", "revoke roles for an etcd user", roles, s.userRoles(client.AuthUserAPI.RevokeUser))
	revoke.Action = withRoles(revoke.Action)
	return cli.Command{
		Name: "user", Usage: "user add, grant and revoke subcommands",
		Subcommands: []cli.Command{
			user("add", "add a new user for the etcd cluster", nil, s.userAdd),
			user("get", "get details for a user", nil, s.userGet),
			{Name: "list", Usage: "list all current users", ArgsUsage: "<user>", Action: s.onAuth(0, "No arguments accepted", s.userList)},
			user("remove", "remove a user for the etcd cluster", nil, s.userRemove),
			grant, revoke,
			user("passwd", "change password for a user", nil, s.userPasswd),
		},
	}
}

// withRoles is an action that needs --roles.
func withRoles(action any) cli.ActionFunc {
	return func(c *cli.Context) error {
		if len(c.StringSlice("roles")) == 0 {
			return plain("No roles specified; please use `--roles`")
		}
		return cli.HandleAction(action, c)
	}
}

// onAuth is the action of a command with so many arguments.
func (s *session) onAuth(args int, hint string, do func(context.Context, client.Client, *cli.Context) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if c.NArg() != args {
			return plain("%s", hint)
		}
		connected, err := s.authAPI(c)
		if err != nil {
			return err
		}
		ctx, cancel := s.total(c)
		defer cancel()
		return do(ctx, connected, c)
	}
}

func (s *session) userList(ctx context.Context, connected client.Client, _ *cli.Context) error {
	users, err := client.NewAuthUserAPI(connected).ListUsers(ctx)
	if err != nil {
		return plain("%w", err)
	}
	for _, name := range users {
		s.say("%s\n", name)
	}
	return nil
}

func (s *session) userAdd(ctx context.Context, api client.AuthUserAPI, c *cli.Context) error {
	name, password, err := s.password("New password: ", c.Args().First())
	if err != nil {
		return plain("Error reading password: %w", err)
	}
	if err := api.AddUser(ctx, name, password); err != nil {
		return plain("%w", err)
	}
	s.say("User %s created\n", name)
	return nil
}

func (s *session) userGet(ctx context.Context, api client.AuthUserAPI, c *cli.Context) error {
	user, err := api.GetUser(ctx, c.Args().First())
	if err != nil {
		return plain("%w", err)
	}
	s.say("User: %s\nRoles: %s\n", user.User, strings.Join(user.Roles, " "))
	return nil
}

func (s *session) userRemove(ctx context.Context, api client.AuthUserAPI, c *cli.Context) error {
	if err := api.RemoveUser(ctx, c.Args().First()); err != nil {
		return plain("%w", err)
	}
	s.say("User %s removed\n", c.Args().First())
	return nil
}

func (s *session) userPasswd(ctx context.Context, api client.AuthUserAPI, c *cli.Context) error {
	password, err := speakeasy.Ask("New password: ")
	if err != nil {
		return plain("Error reading password: %w", err)
	}
	if _, err := api.ChangePassword(ctx, c.Args().First(), password); err != nil {
		return plain("%w", err)
	}
	s.say("Password updated\n")
	return nil
}

// userRoles grants or revokes roles.
func (s *session) userRoles(do func(client.AuthUserAPI, context.Context, string, []string) (*client.User, error)) func(context.Context, client.AuthUserAPI, *cli.Context) error {
	return func(ctx context.Context, api client.AuthUserAPI, c *cli.Context) error {
		if _, err := do(api, ctx, c.Args().First(), c.StringSlice("roles")); err != nil {
			return plain("%w", err)
		}
		s.say("User %s updated\n", c.Args().First())
		return nil
	}
}

func (s *session) roleCommands() cli.Command {
	role := func(name, usage, args string, flags []cli.Flag, do func(context.Context, client.AuthRoleAPI, *cli.Context) error) cli.Command {
		return cli.Command{Name: name, Usage: usage, ArgsUsage: args, Flags: flags, Action: s.onAuth(1, "Please provide a role name",
			func(ctx context.Context, connected client.Client, c *cli.Context) error {
				return do(ctx, client.NewAuthRoleAPI(connected), c)
			})}
	}
	return cli.Command{
		Name: "role", Usage: "role add, grant and revoke subcommands",
		Subcommands: []cli.Command{
			role("add", "add a new role for the etcd cluster", "<role> ", nil, s.roleAdd),
			role("get", "get details for a role", "<role>", nil, s.roleGet),
			{Name: "list", Usage: "list all roles", ArgsUsage: " ", Action: s.onAuth(0, "No arguments accepted", s.roleList)},
			role("remove", "remove a role from the etcd cluster", "<role>", nil, s.roleRemove),
			{
				Name: "grant", Usage: "grant path matches to an etcd role", ArgsUsage: "<role>",
				Flags: []cli.Flag{
					cli.StringFlag{Name: "path", Usage: "Path granted for the role to access"},
					cli.BoolFlag{Name: "read", Usage: "Grant read-only access"},
					cli.BoolFlag{Name: "write", Usage: "Grant write-only access"},
					cli.BoolFlag{Name: "readwrite, rw", Usage: "Grant read-write access"},
				},
				Action: s.rolePath(client.AuthRoleAPI.GrantRoleKV, "granted"),
			},
			{
				Name: "revoke", Usage: "revoke path matches for an etcd role", ArgsUsage: "<role>",
				Flags: []cli.Flag{
					cli.StringFlag{Name: "path", Usage: "Path revoked for the role to access"},
					cli.BoolFlag{Name: "read", Usage: "Revoke read access"},
					cli.BoolFlag{Name: "write", Usage: "Revoke write access"},
					cli.BoolFlag{Name: "readwrite, rw", Usage: "Revoke read-write access"},
				},
				Action: s.rolePath(client.AuthRoleAPI.RevokeRoleKV, "revoked"),
			},
		},
	}
}

func (s *session) roleList(ctx context.Context, connected client.Client, _ *cli.Context) error {
	roles, err := client.NewAuthRoleAPI(connected).ListRoles(ctx)
	if err != nil {
		return plain("%w", err)
	}
	for _, name := range roles {
		s.say("%s\n", name)
	}
	return nil
}

func (s *session) roleAdd(ctx context.Context, api client.AuthRoleAPI, c *cli.Context) error {
	name := c.Args().First()
	if found, err := api.GetRole(ctx, name); err == nil && found != nil {
		return plain("Role %s already exists", name)
	}
	if err := api.AddRole(ctx, name); err != nil {
		return plain("%w", err)
	}
	s.say("Role %s created\n", name)
	return nil
}

func (s *session) roleGet(ctx context.Context, api client.AuthRoleAPI, c *cli.Context) error {
	role, err := api.GetRole(ctx, c.Args().First())
	if err != nil {
		return plain("%w", err)
	}
	s.say("Role: %s\nKV Read:\n", role.Role)
	for _, path := range role.Permissions.KV.Read {
		s.say("\t%s\n", path)
	}
	s.say("KV Write:\n")
	for _, path := range role.Permissions.KV.Write {
		s.say("\t%s\n", path)
	}
	return nil
}

func (s *session) roleRemove(ctx context.Context, api client.AuthRoleAPI, c *cli.Context) error {
	if err := api.RemoveRole(ctx, c.Args().First()); err != nil {
		return plain("%w", err)
	}
	s.say("Role %s removed\n", c.Args().First())
	return nil
}

// rolePath grants or revokes a path.
func (s *session) rolePath(do func(client.AuthRoleAPI, context.Context, string, []string, client.PermissionType) (*client.Role, error), done string) cli.ActionFunc {
	change := s.onAuth(1, "Please provide a role name", func(ctx context.Context, connected client.Client, c *cli.Context) error {
		api, name := client.NewAuthRoleAPI(connected), c.Args().First()
		before, err := api.GetRole(ctx, name)
		if err != nil {
			return plain("%w", err)
		}
		kind := client.ReadPermission
		switch {
		case c.Bool("write"):
			kind = client.WritePermission
		case c.Bool("readwrite"):
			kind = client.ReadWritePermission
		}
		after, err := do(api, ctx, name, []string{c.String("path")}, kind)
		if err != nil {
			return plain("%w", err)
		}
		if reflect.DeepEqual(before, after) {
			s.say("Role unchanged; already %s", done)
		}
		s.say("Role %s updated\n", name)
		return nil
	})
	return func(c *cli.Context) error {
		path := c.String("path")
		if path == "" {
			return plain("No path specified; please use `--path`")
		}
		if canonical := pathutil.CanonicalURLPath(path); canonical != path {
			return plain("Not canonical path; please use `--path=%s`", canonical)
		}
		kinds := 0
		for _, name := range []string{"read", "write", "readwrite"} {
			if c.Bool(name) {
				kinds++
			}
		}
		if kinds != 1 {
			return plain("Please specify exactly one of --read, --write or --readwrite")
		}
		return change(c)
	}
}

func (s *session) authCommands() cli.Command {
	command := func(name, usage, done string, do func(client.AuthAPI, context.Context) error) cli.Command {
		return cli.Command{Name: name, Usage: usage, ArgsUsage: " ", Action: s.onAuth(0, "No arguments accepted",
			func(ctx context.Context, connected client.Client, _ *cli.Context) error {
				if err := do(client.NewAuthAPI(connected), ctx); err != nil {
					return plain("%w", err)
				}
				s.say("Authentication %s\n", done)
				return nil
			})}
	}
	return cli.Command{
		Name: "auth", Usage: "overall auth controls",
		Subcommands: []cli.Command{
			command("enable", "enable auth access controls", "Enabled", client.AuthAPI.Enable),
			command("disable", "disable auth access controls", "Disabled", client.AuthAPI.Disable),
		},
	}
}
